"""The CLIP vision tower in plain torch, for training machines without `transformers`.

It reads the same file and gives the same numbers as `standalone.encoders`; a test compares the two.
It supports only what the tiny file needs.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor
from torch.nn import functional

from ...multitalk_core.inputs.photo import resize_for_clip
from ..tiny.files import TinySet

NUM_HEADS = 4
"""Of the tiny vision tower."""

_VISION = "vision_model."


def load_vision(folder: Path) -> dict[str, Tensor]:
    """Give the weights of the CLIP vision tower in `folder`, for `encode_photos`."""
    return _floats(TinySet(folder).clip_vision)


@torch.no_grad()
def encode_photos(weights: Mapping[str, Tensor], photos: Tensor) -> Tensor:
    """Turn photos `(B, 3, H, W)` in [-1, 1] into image tokens `(B, 257, C)`, as `CLIP` in use.

    Args:
        weights: From `load_vision`, on the photos' device.
        photos: Pictures of any size.
    """
    return vision_state(weights, resize_for_clip(photos))


def vision_state(weights: Mapping[str, Tensor], pixels: Tensor) -> Tensor:
    """Run the tower over pixels `(B, 3, 224, 224)` up to the last but one state, `(B, 257, C)`."""
    name = f"{_VISION}embeddings."
    kernel = weights[f"{name}patch_embedding.weight"]
    patches = functional.conv2d(pixels, kernel, stride=kernel.shape[-1]).flatten(2).transpose(1, 2)
    whole = weights[f"{name}class_embedding"].expand(len(pixels), 1, -1)
    x = torch.cat((whole, patches), dim=1) + weights[f"{name}position_embedding.weight"]
    x = _layer_norm(weights, f"{_VISION}pre_layrnorm", x)
    for i_layer in range(_count(weights, f"{_VISION}encoder.layers.") - 1):
        layer = f"{_VISION}encoder.layers.{i_layer}."
        normed = _layer_norm(weights, f"{layer}layer_norm1", x)
        q, k, v = (
            _linear(weights, f"{layer}self_attn.{part}_proj", normed)
            .unflatten(-1, (NUM_HEADS, -1))
            .transpose(1, 2)
            for part in "qkv"
        )
        seen = functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        x = x + _linear(weights, f"{layer}self_attn.out_proj", seen)
        normed = _layer_norm(weights, f"{layer}layer_norm2", x)
        inner = functional.gelu(_linear(weights, f"{layer}mlp.fc1", normed))
        x = x + _linear(weights, f"{layer}mlp.fc2", inner)
    return x


def _linear(weights: Mapping[str, Tensor], name: str, x: Tensor) -> Tensor:
    return functional.linear(x, weights[f"{name}.weight"], weights[f"{name}.bias"])


def _layer_norm(weights: Mapping[str, Tensor], name: str, x: Tensor) -> Tensor:
    weight = weights[f"{name}.weight"]
    return functional.layer_norm(x, weight.shape, weight, weights[f"{name}.bias"], 1e-5)


def _count(weights: Mapping[str, Tensor], prefix: str) -> int:
    return len({n.removeprefix(prefix).split(".")[0] for n in weights if n.startswith(prefix)})


def _floats(path: Path) -> dict[str, Tensor]:
    stored = load_file(path)
    return {name: value.float() for name, value in stored.items() if value.is_floating_point()}
