"""Loading of a damaged file by the product's own paths."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Literal

import torch

from ...multitalk_core.errors import MultiTalkError
from ...multitalk_core.files.identify import FileKind, identify, require
from ...multitalk_core.inputs.features import load_wav2vec2
from ...standalone.encoders import load_image_encoder, load_text_encoder
from ...standalone.inspection import inspect_file
from ...standalone.request import ModelFiles
from ...standalone.vae import load_vae
from ...standalone.weights import OpenFiles
from ...wan_gguf_loader.errors import GGUFError
from ...wan_gguf_loader.files import open_weights
from ...wan_gguf_loader.lora import read_lora
from ...wan_gguf_loader.namings import Part
from ..zoo.files import Family
from ..zoo.plain import PlainSet

Kind = Literal["gguf", "safetensors", "encoders", "loras"]
OURS = (GGUFError, MultiTalkError)
"""What a bad file may raise."""
_ENCODERS: Mapping[Family, tuple[Part, FileKind]] = {
    "text_encoder": ("text_encoder", FileKind.UMT5),
    "clip_vision": ("clip_vision", FileKind.CLIP_VISION),
    "wav2vec2": ("wav2vec2", FileKind.WAV2VEC2),
    "vae": ("vae", FileKind.VAE),
}
ENCODERS = tuple(_ENCODERS)
_CPU = torch.device("cpu")


def header(path: Path) -> None:
    """Open a file, read all of its metadata, and say what it is."""
    with open_weights(path) as file:
        dict(file.metadata)
    inspection = inspect_file(path)
    inspection.lines().encode()
    json.dumps(asdict(inspection)).encode()


def encoder(family: Family) -> Callable[[Path], None]:
    """Give the command's loader of an encoder, after the check that it is one."""
    part, kind = _ENCODERS[family]

    def loads(path: Path) -> None:
        with open_weights(path, part=part) as file:
            require(identify(file.shapes, file.metadata), kind, source=path.name, place="a place")
            if part == "text_encoder":
                load_text_encoder(file, device=_CPU, dtype=torch.float32)
            elif part == "clip_vision":
                load_image_encoder(file, device=_CPU, dtype=torch.float32)
            elif part == "vae":
                load_vae(file, device=_CPU, dtype=torch.float32)
            else:
                load_wav2vec2(file.weights(), num_heads=file.num_heads, source=path.name)

    return loads


def lora(plain: PlainSet) -> Callable[[Path], None]:
    """Give the reader of LoRAs for the plain transformer."""
    files = ModelFiles(
        base=plain.base, adapter=plain.adapter, loras=(), wav2vec2=plain.wav2vec2, vae=plain.vae,
        text_encoder=plain.text_encoder, clip_vision=plain.clip_vision,
    )  # fmt: skip
    model = OpenFiles(files).load_transformer(torch.float32)

    def loads(path: Path) -> None:
        with open_weights(path) as file:
            read_lora(file, model).report(1.0).encode()

    return loads
