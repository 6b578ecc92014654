"""The report of `multitalk inspect`: what `generate` does with a weights file, or why not."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import torch

from ..multitalk_core.config import DEFAULTS, AudioConfig, Method, ModelConfig
from ..multitalk_core.errors import WeightsError
from ..multitalk_core.files.identify import SAME_TENSORS, FileKind, identify, title_of
from ..multitalk_core.files.sizes import (
    WAV2VEC2_LAYERS,
    adapter_config,
    clip_sizes,
    model_config,
    umt5_sizes,
    wav2vec2_layers,
)
from ..multitalk_core.model.dit import MultiTalkModel
from ..wan_gguf_loader.files import WeightsFile, open_weights
from ..wan_gguf_loader.load import account_for
from ..wan_gguf_loader.ops import GGUFOps
from ..wan_gguf_loader.tokenizer import tokenizer_model
from .memory import RESIDENT, STREAMED, count_weights, loaded_bytes

_SHOWN = (
    *("steps", "shift", "text_guidance", "audio_guidance"),
    *("segment_frames", "motion_frames"),
)
"""Settings that differ between methods."""


class _Role(NamedTuple):
    """Where a kind of file goes.

    Attributes:
        option: Of `multitalk generate`.
        node: In ComfyUI.
        use: What it is there, with what it needs beside it.
        methods: Those that the file may have been trained for.
    """

    option: str
    node: str
    use: str
    methods: tuple[Method, ...] = ()


_ROLES = {
    FileKind.BASE_I2V: _Role(
        "--base", "Load Wan2.1 (GGUF)", "the base; needs an adapter for a talking video"
    ),
    FileKind.MERGED: _Role(
        "--base",
        "Load Wan2.1 (GGUF)",
        "the base and its audio layers in one; takes no adapter",
        ("multitalk", "infinitetalk", "flashtalk"),
    ),
    FileKind.ADAPTER: _Role(
        "--adapter",
        "Load MultiTalk Adapter",
        "the adapter on top of a base of the same size",
        ("multitalk", "infinitetalk"),
    ),
    FileKind.LORA: _Role(
        "--lora", "Load LoRA (Wan2.1)", "a LoRA; keys of other parts are left out with a warning"
    ),
    FileKind.VAE: _Role("--vae", "Load VAE", "the video autoencoder"),
    FileKind.UMT5: _Role("--text-encoder", "Load UMT5", "the text encoder"),
    FileKind.CLIP_VISION: _Role(
        "--clip-vision", "Load CLIP Vision (Wan2.1)", "the picture encoder"
    ),
    FileKind.WAV2VEC2: _Role("--wav2vec", "Load Wav2Vec2", "the voice encoder"),
}


@dataclass(frozen=True, kw_only=True, slots=True)
class Inspection:
    """One weights file.

    Attributes:
        file: Its path.
        format: `gguf` or `safetensors`.
        kind: What it is for, in one word: `base_i2v`, `adapter`, `lora` ...
        description: The same as a noun phrase.
        option: Option of `multitalk generate` that takes it.
        node: Node of ComfyUI that takes it.
        use: What it is there.
        title: What its metadata calls it; `None` if they do not.
        same_tensors: Models that cannot be told apart by their tensors; `None` if it is known.
        methods: The methods it may have been trained for, with the settings of each.
        memory_bytes: Bytes its weights take in bfloat16 (Wav2Vec2: float32); packed ones stay so.
        streamed_bytes: What of them is on the card with `--offload blocks`; `None` where all is.
        tensors: Number of tensors.
        types: Storage types and how many tensors have each, the most frequent first.
        parameters: Number of weights.
        bytes: Bytes of the tensors in the file.
    """

    file: str
    format: str
    kind: str
    description: str
    option: str
    node: str
    use: str
    title: str | None
    same_tensors: str | None
    methods: dict[Method, dict[str, float]]
    memory_bytes: int
    streamed_bytes: int | None
    tensors: int
    types: dict[str, int]
    parameters: int
    bytes: int

    def lines(self) -> str:
        """Give the inspection as text."""
        types = ", ".join(f"{name} x {count}" for name, count in self.types.items())
        memory = f"{self.memory_bytes / 1e9:.2f} GB of weights"
        if self.streamed_bytes is not None:
            memory += f"; with --offload blocks {self.streamed_bytes / 1e9:.2f} GB on the card"
        rows = [
            ("use", self.use),
            ("option", f"{self.option} {Path(self.file).name}"),
            ("node", self.node),
            *(
                (f"--method {method}", ", ".join(f"{k} {v:g}" for k, v in settings.items()))
                for method, settings in self.methods.items()
            ),
            ("memory", memory),
            ("metadata", f"call it '{self.title}'" if self.title else ""),
            (
                "untellable",
                f"whether it is {self.same_tensors}: same names and shapes"
                if self.same_tensors
                else "",
            ),
            ("format", self.format),
            ("tensors", f"{self.tensors:,}: {types}"),
            ("parameters", f"{self.parameters:,}"),
            ("bytes", f"{self.bytes:,}"),
        ]
        body = "".join(f"  {name:<21}  {text}\n" for name, text in rows if text)
        return f"{Path(self.file).name}: {self.description}\n{body}"


def inspect_file(path: Path) -> Inspection:
    """Read a file's header and say what `generate` does with it.

    Raises:
        GGUFError: If it is no weights file, or a damaged one.
        WeightsError: If `generate` refuses it; the message says why.
    """
    with open_weights(path) as file:
        identity = identify(file.shapes, file.metadata)
        role = _ROLES.get(identity.kind)
        if role is None:
            raise WeightsError(
                f"{path.name} is {identity.description}; no option takes it. The command needs "
                "a Wan2.1 image-to-video base, an adapter, Wav2Vec2, a VAE, UMT5 and CLIP vision."
            )
        _check(file, identity.kind)
        memory, streamed = _memory(file, identity.kind)
        infos = file.tensors.values()
        return Inspection(
            file=str(path),
            format=file.format,
            kind=identity.kind.name.lower(),
            description=identity.description,
            option=role.option,
            node=role.node,
            use=role.use,
            title=title_of(file.metadata),
            same_tensors=SAME_TENSORS.get(identity.kind),
            methods={method: _settings(method) for method in role.methods},
            memory_bytes=memory,
            streamed_bytes=streamed,
            tensors=len(infos),
            types=dict(Counter(info.type for info in infos).most_common()),
            parameters=sum(info.num_elements for info in infos),
            bytes=sum(info.nbytes for info in infos),
        )


def _check(file: WeightsFile, kind: FileKind) -> None:
    """Refuse what `generate` refuses once it knows the sizes.

    Raises:
        GGUFError: If a tensor of a layer that is loaded would not be read or holds no weights, or
            if there is no tokenizer.
        WeightsError: If a tensor is missing, or a size does not fit.
    """
    shapes, source = file.shapes, file.path.name
    if kind is FileKind.ADAPTER:
        config = adapter_config(shapes, source=source)
        _check_names(file, _names(config) - _names(replace(config, audio=None)))
    elif kind in (FileKind.BASE_I2V, FileKind.MERGED):
        _check_names(file, _names(model_config(shapes, num_heads=file.num_heads, source=source)))
    elif kind is FileKind.UMT5:
        umt5_sizes(shapes, source=source)
        tokenizer_model(file)
    elif kind is FileKind.CLIP_VISION:
        clip_sizes(shapes, num_heads=file.num_heads, source=source)
    elif kind is FileKind.WAV2VEC2:
        layers, width = wav2vec2_layers(shapes, source=source)
        if layers != WAV2VEC2_LAYERS:
            AudioConfig().check_features(layers, width, encoder=source, adapter="every adapter")


def _names(config: ModelConfig) -> set[str]:
    """Give the names of the transformer's tensors."""
    return set(MultiTalkModel(config, ops=GGUFOps(), device="meta").state_dict())


def _check_names(file: WeightsFile, needed: Collection[str]) -> None:
    missing = [name for name in needed if name not in file.tensors]
    if missing:
        raise WeightsError(
            f"{file.path.name} lacks {len(missing)} of the {len(needed)} tensors that are needed "
            f"of it, such as '{min(missing)}'. Download it again, or take another file."
        )
    for name in needed:
        file.weight_info(name)  # refuses whole numbers
    account_for(file, needed)


def _memory(file: WeightsFile, kind: FileKind) -> tuple[int, int | None]:
    """Give the bytes of the weights in memory, and those on the card with streamed blocks."""
    if kind is FileKind.LORA:
        return count_weights(loaded_bytes(file, None)).on_card(RESIDENT), None
    if kind in (FileKind.BASE_I2V, FileKind.MERGED, FileKind.ADAPTER):
        weights = count_weights(loaded_bytes(file, torch.bfloat16))
        return weights.on_card(RESIDENT), weights.on_card(STREAMED)
    dtype = torch.float32 if kind is FileKind.WAV2VEC2 else torch.bfloat16
    return sum(info.num_elements for info in file.tensors.values()) * dtype.itemsize, None


def _settings(method: Method) -> dict[str, float]:
    """Give the settings that `generate` uses with a method, unless told otherwise."""
    return {name: getattr(DEFAULTS[method], name) for name in _SHOWN}
