"""The weights files of a folder by content: what is there, what is missing, whether it fits.

Only headers are read.
"""

from __future__ import annotations

import os
import re
import shlex
from collections.abc import Iterator, Mapping
from pathlib import Path

import torch

from ..multitalk_core.config import SamplingConfig
from ..multitalk_core.errors import MultiTalkError
from ..multitalk_core.files.identify import FileKind, identify
from ..multitalk_core.geometry import Size
from ..wan_gguf_loader.errors import GGUFError
from ..wan_gguf_loader.files import open_weights
from . import memory
from .finding import Finding, bad, note, ok
from .hub import gigabytes
from .request import ModelFiles

Stock = Mapping[FileKind, list[Path]]
"""Files that the command takes, by kind."""

_SUFFIXES = {".gguf", ".safetensors", ".sft"}
_LATER_SHARD = re.compile(r".+-(?!00001-)\d{5}-of-\d{5}\.\w+", re.DOTALL)
_NAMES = {
    FileKind.BASE_I2V: "base",
    FileKind.ADAPTER: "adapter",
    FileKind.MERGED: "base with adapter",
    FileKind.WAV2VEC2: "Wav2Vec2",
    FileKind.VAE: "VAE",
    FileKind.UMT5: "text encoder",
    FileKind.CLIP_VISION: "CLIP vision",
    FileKind.LORA: "LoRA",
}
_NEEDED = (FileKind.WAV2VEC2, FileKind.VAE, FileKind.UMT5, FileKind.CLIP_VISION)
_SIZE = Size(height=480, width=832)
"""Video size that the plans are for."""


def find_models(files: list[Path], *, folder: Path | None) -> tuple[Stock, list[Finding]]:
    """Tell what the files are.

    Args:
        files: To be looked at one by one; none for those of the folder.
        folder: Searched with the folders in it; a file in it that no option takes is only counted.
    """
    named = bool(files)
    if folder is not None and not folder.is_dir():
        return {}, [bad("models", f"{folder} is no folder", "give another with --models")]
    if folder is not None:
        files = [*files, *sorted(_weights_in(folder))]
    stock: dict[FileKind, list[Path]] = {kind: [] for kind in _NAMES}
    findings, others = [], 0
    for path in files:
        try:
            with open_weights(path) as file:
                identity = identify(file.shapes, file.metadata)
        except GGUFError as reason:
            make = bad if named else note
            findings.append(make(path.name, str(reason), "remove or replace it"))
            continue
        if identity.kind in stock:
            stock[identity.kind].append(path)
            findings.append(ok(_NAMES[identity.kind], f"{path}: {identity.description}"))
        elif named:
            fix = "see `multitalk generate --help` for what is needed"
            findings.append(bad(path.name, f"{identity.description}; no option takes it", fix))
        else:
            others += 1
    if others:
        findings.append(ok("other files", f"{others} for other models, not used"))
    return stock, findings


def _weights_in(folder: Path) -> Iterator[Path]:
    """Give the weights files of a folder and those in it, linked ones too; of shards the first."""
    seen: set[str] = set()
    for parent, folders, names in os.walk(folder, followlinks=True):
        if os.path.realpath(parent) in seen:
            folders.clear()  # a link in a circle
            continue
        seen.add(os.path.realpath(parent))
        for name in names:
            if Path(name).suffix.lower() in _SUFFIXES and not _LATER_SHARD.fullmatch(name):
                yield Path(parent, name)


def missing_roles(stock: Stock, *, folder: Path | None, comfyui: Path | None) -> Iterator[Finding]:
    """Name what a run needs and none of the files is; in named files it may be elsewhere."""
    place = f"--to {shlex.quote(str(folder or 'FOLDER'))}"
    if folder is not None and comfyui is not None and folder == comfyui / "models":
        place = f"--comfyui {shlex.quote(str(comfyui))}"
    needed = list(_NEEDED)
    if not stock.get(FileKind.MERGED):
        needed = [FileKind.BASE_I2V, FileKind.ADAPTER, *needed]
    for kind in needed:
        if not stock.get(kind):
            make = bad if folder is not None else note
            fix = f"multitalk download 480p-q4 {place}"
            yield make(_NAMES[kind], f"there is no {kind.value.partition(' ')[2]}", fix)


def memory_plans(stock: Stock) -> Iterator[Finding]:
    """Give the plan of each base with the first file of every other kind."""
    for base in (*stock[FileKind.BASE_I2V], *stock[FileKind.MERGED]):
        merged = base in stock[FileKind.MERGED]
        files = ModelFiles(
            base=base,
            adapter=None if merged else stock[FileKind.ADAPTER][0],
            loras=(),
            wav2vec2=stock[FileKind.WAV2VEC2][0],
            vae=stock[FileKind.VAE][0],
            text_encoder=stock[FileKind.UMT5][0],
            clip_vision=stock[FileKind.CLIP_VISION][0],
        )
        yield _memory_plan(files)


def _memory_plan(files: ModelFiles) -> Finding:
    from .run import workload  # takes seconds to import, and needs all dependencies
    from .weights import OpenFiles

    subject = f"memory for {files.base.name}"
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    try:
        work = workload(OpenFiles(files), SamplingConfig(), size=_SIZE, dtype=dtype)
        if device.type == "cuda":
            free = memory.free_bytes(device)
            plan = memory.choose(work, free=free)
        else:
            free, plan = memory.total_bytes(device), memory.RESIDENT
    except (MultiTalkError, GGUFError) as reason:
        return bad(subject, str(reason), "see `multitalk generate --help`")
    needed = memory.estimate(plan, work)
    text = (
        f"{_SIZE.width}x{_SIZE.height}, {work.num_frames} frames, {work.num_passes} passes need "
        f"about {gigabytes(needed)} of {free / 1e9:.1f} GB"
    )
    if device.type == "cuda":
        return ok(subject, f"{text} on the card: {plan.words}")
    if needed > free:
        return note(subject, f"{text} of main memory", "use a smaller base or a card")
    return ok(subject, f"{text} of main memory")
