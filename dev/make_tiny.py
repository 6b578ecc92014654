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
from collections.abc import Sequence
from pathlib import Path

import torch

from ..tools.convert import convert
from .tiny import encoders, vae, wan
from .tiny.files import TinySet
from .tiny.save import save_weights

SEED = 2025
DEFAULT_FOLDER = Path(__file__).resolve().parents[1] / ".cache" / "tiny"


def make_tiny(folder: Path) -> TinySet:
    """Write the tiny set; each file is written atomically.

    Args:
        folder: Target folder; it is created if missing, and files of the same names are replaced.

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
    save_weights(full, base, dtype=torch.float32)
    convert(full, files.base, type="Q4_K_M", num_heads=wan.CONFIG.num_heads)
    heads = encoders.NUM_HEADS
    save_weights(files.adapter, adapter, dtype=torch.bfloat16)
    save_weights(files.lora, wan.lora(base, seed=SEED), dtype=torch.bfloat16)
    save_weights(files.vae, vae.vae(seed=SEED), dtype=torch.bfloat16)
    save_weights(files.wav2vec2, encoders.wav2vec2(seed=SEED), num_heads=heads)
    save_weights(files.text_encoder, encoders.umt5(seed=SEED), num_heads=heads)
    save_weights(files.clip_vision, encoders.clip_vision(seed=SEED), num_heads=heads)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; return its exit code."""
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
