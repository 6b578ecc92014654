"""Stage `export`: the trained parts as a tiny set, in the formats and under the names that ship.

python -m comfyui_multitalk.dev.train_tiny export --out DIR --models models/tiny
"""

from __future__ import annotations

import argparse
import os
import shutil
import sys
import tempfile
from pathlib import Path

import torch
from safetensors.torch import save_file

from ...tools.convert import convert
from ..tiny.files import TrainedSet
from ..tiny.wan import TRAINED
from .dataset import VAE_FILE
from .talker import load_adapter, load_base
from .voices import SAMPLE_RATE, TEST_VOICES, load_voices, save_voices

MAX_BYTES = 28_000_000
"""Of the whole folder."""
VOICE_SECONDS = 24
"""Of each held-out voice that goes with the set, for its evaluation."""


def export(training: Path, models: Path) -> TrainedSet:
    """Write the set; each file is written atomically.

    Args:
        training: Folder of all training stages.
        models: Target folder; files of the same names are replaced.

    Raises:
        FileNotFoundError: If a stage has no result yet.
        ValueError: If the set is larger than `MAX_BYTES`.
    """
    source, made = TrainedSet(training), TrainedSet(models)
    made.vae.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=models, prefix=".part-") as scratch:
        draft = TrainedSet(Path(scratch))
        full = draft.folder / "base.safetensors"
        save_file(load_base(training), full)
        convert(full, draft.base, type="Q8_0", num_heads=TRAINED.num_heads)
        adapter = {name: value.to(torch.float16) for name, value in load_adapter(training).items()}
        save_file(dict(sorted(adapter.items())), draft.adapter, metadata={"format": "pt"})
        draft.vae.parent.mkdir()
        shutil.copyfile(training / VAE_FILE, draft.vae)
        for name in ("wav2vec2", "text_encoder", "clip_vision"):
            shutil.copyfile(getattr(source, name), getattr(draft, name))
        heard = load_voices(source.voices)
        length = VOICE_SECONDS * SAMPLE_RATE
        save_voices(draft.voices, {name: heard[name][:length] for name in TEST_VOICES})
        files = (*draft.files, draft.voices)
        size = sum(file.stat().st_size for file in files)
        if size > MAX_BYTES:
            raise ValueError(f"The set would take {size:,} bytes; {MAX_BYTES:,} are allowed.")
        for file in files:
            os.replace(file, models / file.relative_to(draft.folder))
    return made


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add this stage's options to those of every stage."""
    parser.add_argument("--models", type=Path, required=True, help="folder of the set")


def run(arguments: argparse.Namespace) -> None:
    """Write the set and print the sizes of its files."""
    for file in export(arguments.out, arguments.models).files:
        sys.stdout.write(f"{file.stat().st_size:>10,} bytes  {file.name}\n")
