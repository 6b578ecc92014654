"""Deterministic weights for any model, with which activations stay of order one in every layer."""

from __future__ import annotations

import zlib
from collections.abc import Mapping
from math import prod

import torch
from torch import Tensor, nn

_RESIDUAL_GAIN = 0.5
"""Gain of layers that write into a residual stream, so that depth does not add up."""
_RESIDUAL_ENDS = (
    ".o.weight", "out_proj.weight", "audio_cross_attn.proj.weight", ".wo.weight", "fc2.weight",
    "ffn.2.weight", "output_dense.weight", "residual.6.weight", "middle.1.proj.weight",
)  # fmt: skip
_GAINS = (".gamma", "weight_g", "norm.weight", "norm1.weight", "norm2.weight", "layrnorm.weight")
_GAINS += ("norm3.weight", "norm_q.weight", "norm_k.weight", "norm_x.weight", "norm_k_img.weight")


def meta_shapes(model: nn.Module) -> dict[str, tuple[int, ...]]:
    """Give the names and shapes of what a model built on the meta device would store."""
    return {name: tuple(value.shape) for name, value in model.state_dict().items()}


def fill(
    shapes: Mapping[str, tuple[int, ...]], *, seed: int, std: Mapping[str, float] | None = None
) -> dict[str, Tensor]:
    """Draw weights that keep the variance of what passes through them.

    Each tensor has a generator of its own, so one more or one fewer changes no other.

    Args:
        shapes: Names to shapes.
        seed: Changes all weights.
        std: Standard deviations that differ from the rule, by the end of the name.

    Returns:
        float32 tensors: norm gains 1, biases near 0, matrices and kernels normal with
        variance 1 / fan-in.
    """
    return {name: _draw(name, shape, seed=seed, std=std or {}) for name, shape in shapes.items()}


def _draw(name: str, shape: tuple[int, ...], *, seed: int, std: Mapping[str, float]) -> Tensor:
    generator = torch.Generator().manual_seed(seed + zlib.crc32(name.encode()))
    noise = torch.randn(shape, generator=generator)
    mean, deviation = moments(name, shape, std=std)
    return mean + noise * deviation


def moments(
    name: str, shape: tuple[int, ...], *, std: Mapping[str, float] | None = None
) -> tuple[float, float]:
    """Give mean and standard deviation of one tensor by the rule of `fill`."""
    given = next((value for end, value in (std or {}).items() if name.endswith(end)), None)
    if given is not None:
        return 0.0, given
    if name.endswith(_GAINS) or (len(shape) == 1 and name.endswith(".weight")):
        return 1.0, 0.0
    if len(shape) < 2 or name.endswith("modulation"):
        return 0.0, 0.02
    gain = _RESIDUAL_GAIN if name.endswith(_RESIDUAL_ENDS) else 1.0
    return 0.0, gain * prod(shape[1:]) ** -0.5
