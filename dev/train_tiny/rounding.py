"""Weights rounded to Q8_0 as in the shipped file: one byte a number and a scale for 32 numbers.

The adapter is trained on the rounded base, so writing the base as GGUF loses nothing (rounding
twice changes nothing), and a checkpoint of 10 million weights takes 11 MB.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

_BLOCK = 32
_LARGEST = 127
_CODES, _SCALES = ".q8_codes", ".q8_scales"


def is_rounded(name: str, value: Tensor) -> bool:
    """Tell whether `tools.convert` writes a tensor of the base as Q8_0."""
    return value.ndim == 2 and name.startswith("blocks.") and not name.endswith("modulation")


def pack(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Pack weights for a checkpoint: Q8_0 codes and scales; other tensors as float16."""
    packed = {}
    for name, value in weights.items():
        if not is_rounded(name, value):
            packed[name] = value.half().cpu()
            continue
        blocks = value.float().cpu().unflatten(1, (-1, _BLOCK))
        scales = (blocks.abs().amax(dim=-1, keepdim=True) / _LARGEST).half()
        steps = torch.where(scales > 0, scales.float(), 1.0)
        packed[name + _CODES] = (blocks / steps).round().clamp(-_LARGEST, _LARGEST).to(torch.int8)
        packed[name + _SCALES] = scales
    return packed


def unpack(packed: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Unpack a checkpoint's tensors to float32 weights."""
    weights = {}
    for name, value in packed.items():
        if name.endswith(_CODES):
            whole = name.removesuffix(_CODES)
            weights[whole] = (value.float() * packed[whole + _SCALES].float()).flatten(1)
        elif not name.endswith(_SCALES):
            weights[name] = value.float()
    return weights
