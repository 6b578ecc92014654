"""The transformer, its MultiTalk adapter and a LoRA, under the names of the released files."""

from __future__ import annotations

import dataclasses

from torch import Tensor

from ...multitalk_core.config import AudioConfig, ModelConfig
from ...multitalk_core.model.dit import MultiTalkModel
from .fill import fill, meta_shapes

CONFIG = ModelConfig(
    dim=256,  # rows of the K-quants are multiples of 256
    ffn_dim=512,
    num_heads=4,
    num_layers=2,
    text_dim=64,
    image_dim=64,
    audio=AudioConfig(layers=12, channels=32, hidden_dim=64, num_tokens=8, token_dim=256),
)
TRAINED = dataclasses.replace(
    CONFIG,
    ffn_dim=1024,
    num_layers=8,
    audio=AudioConfig(layers=12, channels=32, hidden_dim=128, num_tokens=8, token_dim=256),
)
"""Sizes of the trained tiny set; the benchmarks' scale `tiny` has them too."""
LORA_RANK = 4
_ADAPTED = ("self_attn.q", "self_attn.k", "self_attn.v", "self_attn.o", "cross_attn.q")
_ADAPTED += ("cross_attn.k", "cross_attn.v", "cross_attn.o", "ffn.0", "ffn.2")
STD = {"time_projection.1.weight": 0.02}
"""Spreads of random weights that differ from `fill`'s rule.

The adaptive norms see the time through this layer; it is small, so that every gate stays near its
own value.
"""


def base_and_adapter(*, seed: int) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Draw the weights of the image-to-video base and of the adapter that is added to it."""
    weights = fill(meta_shapes(MultiTalkModel(CONFIG, device="meta")), seed=seed, std=STD)
    adapter = {name: value for name, value in weights.items() if is_audio(name)}
    base = {name: value for name, value in weights.items() if not is_audio(name)}
    return base, adapter


def lora(base: dict[str, Tensor], *, seed: int) -> dict[str, Tensor]:
    """Draw a low-rank change of the base's attention and feed-forward layers, in PEFT's names."""
    shapes: dict[str, tuple[int, ...]] = {}
    for block in range(CONFIG.num_layers):
        for layer in (f"blocks.{block}.{name}" for name in _ADAPTED):
            outputs, inputs = base[f"{layer}.weight"].shape
            shapes[f"diffusion_model.{layer}.lora_A.weight"] = (LORA_RANK, inputs)
            shapes[f"diffusion_model.{layer}.lora_B.weight"] = (outputs, LORA_RANK)
    return fill(shapes, seed=seed, std={"lora_B.weight": 0.1})


def is_audio(name: str) -> bool:
    """Tell whether a tensor belongs to the adapter."""
    return name.startswith("audio_proj.") or ".audio_cross_attn." in name or ".norm_x." in name
