"""A whole model with random weights, drawn where it will run.

Which tensors are packed follows `tools.convert` for the base; the adapter's layers in the blocks
take a type of their own. Values follow `dev.tiny.fill`: activations stay of order one.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Generator, Tensor, nn

from ....multitalk_core.config import ModelConfig
from ....multitalk_core.model.dit import MultiTalkModel
from ....wan_gguf_loader.changes import Change
from ....wan_gguf_loader.dequant import PACKED_TYPES
from ....wan_gguf_loader.ops import GGUFLinear, GGUFOps
from ...tiny.fill import moments
from ...tiny.wan import STD, is_audio
from .packing import random_packed

_BIAS_STD = 0.02
_LORA_SHARE = 0.1
"""Standard deviation of a LoRA's change over that of the weight."""


def random_model(
    config: ModelConfig,
    *,
    base: str,
    adapter: str,
    device: torch.device,
    seed: int = 0,
    ops: Any = None,
) -> MultiTalkModel:
    """Build a model; the same seed and device give the same weights.

    Args:
        config: Its sizes.
        base: Type of Wan's layers in the blocks, such as Q4_K; or BF16, then nothing is packed.
        adapter: The same for MultiTalk's layers.
        device: Where the weights are drawn and stay.
        seed: Of the weights.
        ops: Layer classes; GGUF's unless others are given.
    """
    generator = torch.Generator(device).manual_seed(seed)
    model = MultiTalkModel(config, ops=ops or GGUFOps(), device="meta")
    for path, module in model.named_modules():
        if isinstance(module, GGUFLinear):
            type = weight_type(f"{path}.weight", base=base, adapter=adapter)
            _fill_linear(module, path, type, generator)
        else:
            plain = torch.bfloat16 if base == "BF16" else torch.float32
            for name, value in list(module.named_parameters(recurse=False)):
                drawn = _plain(f"{path}.{name}", tuple(value.shape), plain, generator)
                setattr(module, name, nn.Parameter(drawn, requires_grad=False))
    return model.eval()


def weight_type(name: str, *, base: str, adapter: str) -> str:
    """Give the type of a linear layer's weight; outside the blocks nothing is packed."""
    if not name.startswith("blocks."):
        return "BF16"
    return adapter if is_audio(name) else base


def add_loras(model: MultiTalkModel, *, count: int, rank: int, seed: int = 1) -> None:
    """Add LoRAs to every linear layer of the blocks."""
    for module in model.blocks.modules():
        if not isinstance(module, GGUFLinear):
            continue
        device = module.weight.device
        generator = torch.Generator(device).manual_seed(seed)
        for _ in range(count):
            up = _normal((module.out_features, rank), 1.0, torch.bfloat16, generator)
            down = _normal((rank, module.in_features), 1.0, torch.bfloat16, generator)
            scale = _LORA_SHARE * (rank * module.in_features) ** -0.5
            module.change_weight(Change(name="", kind="LoRA", factors=(up, down), scale=scale))


def _fill_linear(layer: GGUFLinear, path: str, type: str, generator: Generator) -> None:
    name, shape = f"{path}.weight", (layer.out_features, layer.in_features)
    if type in PACKED_TYPES:
        _, std = moments(name, shape, std=STD)
        layer.store_weight(random_packed(type, shape, std=std, generator=generator), type)
    else:
        layer.store_weight(_plain(name, shape, torch.bfloat16, generator), type)
    if layer.bias is not None:
        dtype = torch.float32 if type in PACKED_TYPES else torch.bfloat16
        layer.bias = _normal((layer.out_features,), _BIAS_STD, dtype, generator)


def _plain(name: str, shape: tuple[int, ...], dtype: torch.dtype, generator: Generator) -> Tensor:
    mean, std = moments(name, shape, std=STD)
    return _normal(shape, std, dtype, generator).add_(mean)


def _normal(shape: tuple[int, ...], std: float, dtype: torch.dtype, generator: Generator) -> Tensor:
    empty = torch.empty(shape, dtype=dtype, device=generator.device)
    return empty.normal_(0, std, generator=generator) if std else empty.zero_()
