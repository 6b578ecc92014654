"""Weights files that are not what the place needs, made from the tiny set."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from comfyui_multitalk.tests.support.tiny import TinySet
from comfyui_multitalk.wan_gguf_loader.files import open_weights

NARROW = 128


def add_bad_files(models: Path, tiny: TinySet) -> None:
    """Put every bad file into the folder its list looks into."""
    bases = models / "diffusion_models"
    save_file(_text_to_video(tiny), bases / "t2v.safetensors")
    (bases / "adapter.safetensors").symlink_to(tiny.adapter)
    content = tiny.base.read_bytes()
    (bases / "truncated.gguf").write_bytes(content[: len(content) // 2])
    (bases / "pointer.gguf").write_text(
        "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 11341184384\n"
    )
    (bases / "page.gguf").write_text("<!DOCTYPE html><html><head><title>Sign in</title></head>")
    patches = models / "model_patches"
    save_file(_narrow_adapter(tiny), patches / "narrow.safetensors")
    voices = models / "audio_encoders"
    save_file(_shallow_voice_encoder(tiny), voices / "shallow.safetensors", {"num_heads": "4"})


def _text_to_video(tiny: TinySet) -> dict[str, torch.Tensor]:
    with open_weights(tiny.base) as file:
        shapes = file.shapes
    shapes["patch_embedding.weight"] = (shapes["patch_embedding.weight"][0], 16, 1, 2, 2)
    return {
        name: torch.zeros(shape, dtype=torch.float16)
        for name, shape in shapes.items()
        if not name.startswith("img_emb.") and "_img" not in name
    }


def _narrow_adapter(tiny: TinySet) -> dict[str, torch.Tensor]:
    weights = load_file(tiny.adapter)
    width = weights["blocks.0.audio_cross_attn.proj.bias"].shape[0]
    return {
        name: _cut(value, width) if name.startswith("blocks.") else value
        for name, value in weights.items()
    }


def _cut(value: torch.Tensor, width: int) -> torch.Tensor:
    for dim, size in enumerate(value.shape):
        if size % width == 0:
            value = value.narrow(dim, 0, size * NARROW // width)
    return value.contiguous()


def _shallow_voice_encoder(tiny: TinySet) -> dict[str, torch.Tensor]:
    weights = load_file(tiny.wav2vec2)
    return {name: value for name, value in weights.items() if ".layers.11." not in name}
