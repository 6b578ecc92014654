"""The zoo's models in plain files: what a variant of one model is loaded together with."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import torch

from . import text_rows, values, vision_rows, voice_rows
from .codecs import plain
from .stored import encode


class PlainSet(NamedTuple):
    """Paths of the files."""

    base: Path
    adapter: Path
    wav2vec2: Path
    vae: Path
    text_encoder: Path
    clip_vision: Path


def write_plain(folder: Path) -> PlainSet:
    """Write the set: the base in fp32, so that a LoRA on it loses nothing, all else in fp16."""
    folder.mkdir(parents=True, exist_ok=True)
    half = plain(torch.float16)
    models = {
        "base": encode(values.base(), plain(torch.float32), rest=torch.float32),
        "adapter": encode(values.adapter(), half),
        "wav2vec2": voice_rows.released(half),
        "vae": encode(values.autoencoder(), half),
        "text_encoder": text_rows.released(half),
        "clip_vision": vision_rows.released(half),
    }
    paths = {n: m.save(folder / f"{n}.safetensors").path for n, m in models.items()}
    return PlainSet(**paths)
