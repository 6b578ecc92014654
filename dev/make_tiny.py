"""Makes the untrained tiny set: every weights file of the method, tiny, in its released format.

    python -m comfyui_multitalk.dev.make_tiny [FOLDER]     # .cache/tiny

The whole path runs on it in seconds on a CPU; its videos are noise, since nothing was trained.
Names, layouts and file formats are those of the released files. The same code gives the same bytes.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from ..tools.convert import convert
from .tiny import encoders, vae, wan
from .tiny.files import TinySet

SEED = 2025
DEFAULT_FOLDER = Path(__file__).resolve().parents[1] / ".cache" / "tiny"


def make_tiny(folder: Path) -> TinySet:
    """Write the tiny set; each file appears whole or not at all.

    Args:
        folder: Where to; made if it is not there, files of the same names are replaced.

    Returns:
        The set.
    """
    folder.mkdir(parents=True, exist_ok=True)
    made = TinySet(folder)
    with tempfile.TemporaryDirectory(dir=folder, prefix=".part-") as scratch:
        draft = TinySet(Path(scratch))
        _write(draft)
        for file in draft.files:
            os.replace(file, folder / file.name)
    return made


def _write(files: TinySet) -> None:
    base, adapter = wan.base_and_adapter(seed=SEED)
    full = files.folder / "base.safetensors"
    _save(full, base, dtype=torch.float32)
    convert(full, files.base, type="Q4_K_M", num_heads=wan.CONFIG.num_heads)
    heads = {"num_heads": str(encoders.NUM_HEADS)}
    _save(files.adapter, adapter, dtype=torch.bfloat16)
    _save(files.lora, wan.lora(base, seed=SEED), dtype=torch.bfloat16)
    _save(files.vae, vae.vae(seed=SEED), dtype=torch.bfloat16)
    _save(files.wav2vec2, encoders.wav2vec2(seed=SEED), dtype=torch.float16, metadata=heads)
    _save(files.text_encoder, encoders.umt5(seed=SEED), dtype=torch.float16, metadata=heads)
    _save(files.clip_vision, encoders.clip_vision(seed=SEED), dtype=torch.float16, metadata=heads)


def _save(
    path: Path,
    weights: Mapping[str, Tensor],
    *,
    dtype: torch.dtype,
    metadata: Mapping[str, str] | None = None,
) -> None:
    stored = {
        name: (value.to(dtype) if value.is_floating_point() else value).contiguous()
        for name, value in sorted(weights.items())
    }
    # One key only: safetensors writes several in an order that changes from run to run.
    save_file(stored, path, metadata=dict(metadata or {"format": "pt"}))


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns its exit code."""
    parser = argparse.ArgumentParser(prog="make_tiny", description="Write the tiny set of weights")
    parser.add_argument("folder", nargs="?", type=Path, default=DEFAULT_FOLDER)
    parser.add_argument("--if-missing", action="store_true", help="leave a complete set alone")
    options = parser.parse_args(arguments)
    made = TinySet(options.folder)
    if options.if_missing and all(file.is_file() for file in made.files):
        return 0
    make_tiny(options.folder)
    for file in made.files:
        sys.stdout.write(f"{file.stat().st_size:>10,} bytes  {file.name}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
