"""Random packed weights of every type whose decoded values have mean 0 and a given spread.

The quants are random bytes; only the scales of a block are set (layouts as in `dequant.py`).
"""

from __future__ import annotations

import functools
import math
from typing import NamedTuple

import torch
from torch import Generator, Tensor

from ....wan_gguf_loader.dequant import dequantize
from ....wan_gguf_loader.rows import ROW_TYPES, pack_rows
from ....wan_gguf_loader.types import TYPES_BY_NAME

_SCALE_AT = {
    "Q4_0": 0, "Q4_1": 0, "Q5_0": 0, "Q5_1": 0, "Q8_0": 0, "Q2_K": 80, "Q3_K": 108, "Q4_K": 0,
    "Q5_K": 0, "Q6_K": 208, "TQ1_0": 52, "TQ2_0": 64, "IQ1_S": 0, "IQ2_XXS": 0, "IQ2_XS": 0,
    "IQ2_S": 0, "IQ3_XXS": 0, "IQ3_S": 0, "IQ4_NL": 0, "IQ4_XS": 0,
}  # fmt: skip
"""Offset of a block's float16 scale, in bytes."""
_WITH_MINIMUM = frozenset(("Q4_1", "Q5_1", "Q2_K", "Q4_K", "Q5_K"))
"""Types with a second float16 after the scale."""
_IQ1_M_BYTES = (49, 51, 53, 55)
"""Bytes whose high four bits make up the float16 scale, lowest first."""
_FP4_STD = math.sqrt(34.25) / 2  # of random e2m1 numbers
_SAMPLE_BLOCKS = 4096


class _Shape(NamedTuple):
    """Minimum and standard deviation of a type's decoded values at scale 1."""

    minimum: float
    std: float


def random_packed(type: str, shape: tuple[int, int], *, std: float, generator: Generator) -> Tensor:
    """Draw packed rows `(rows, row_bytes)` on the generator's device.

    Args:
        type: A packed type.
        shape: Rows and columns of the decoded weight.
        std: Standard deviation of the decoded values; the types with four-bit floats come near it.
        generator: Source of the bytes.
    """
    rows, columns = shape
    if type in ROW_TYPES:
        values = torch.empty(shape, device=generator.device).normal_(generator=generator)
        dtype, unit = ROW_TYPES[type].dtype, 25.0  # far from overflow, with all bits in use
        values = (values * unit).round() if dtype == torch.int8 else values * unit
        return pack_rows(values.to(dtype), values.new_full((rows,), std / unit))
    _, _, block, size = TYPES_BY_NAME[type]
    packed = random_bytes((rows, columns // block * size), generator=generator)
    _set_std(packed.view(-1, size), type, std)
    return packed


def random_bytes(shape: tuple[int, ...], *, generator: Generator) -> Tensor:
    """Draw bytes on the generator's device."""
    empty = torch.empty(shape, dtype=torch.uint8, device=generator.device)
    return empty.random_(0, 256, generator=generator)


def _set_std(blocks: Tensor, type: str, std: float) -> None:
    if type == "TQ2_0":
        _drop_threes(blocks)
    if type == "MXFP4":
        blocks[:, 0] = 127 + round(math.log2(std / _FP4_STD))
    elif type == "NVFP4":
        scale = torch.tensor([std / _FP4_STD]).to(torch.float8_e4m3fn)
        blocks[:, :4] = int(scale.view(torch.uint8))
    else:
        shape = _shape(type)
        scale = std / shape.std
        _set_scale(blocks, type, scale=scale, minimum=scale * shape.minimum)


def _drop_threes(blocks: Tensor) -> None:
    """Replace the two-bit code that TQ2_0 files never use by the one for 0: the mean becomes 0."""
    threes = blocks[:, :64] & (blocks[:, :64] >> 1) & 0b01010101
    blocks[:, :64] ^= threes << 1


def _set_scale(blocks: Tensor, type: str, *, scale: float, minimum: float) -> None:
    numbers = torch.tensor([scale, minimum], dtype=torch.float16)
    if type == "IQ1_M":
        bits = int(numbers.view(torch.int16)[0])
        for i_nibble, i_byte in enumerate(_IQ1_M_BYTES):
            nibble = (bits >> (4 * i_nibble)) & 15
            blocks[:, i_byte] = (blocks[:, i_byte] & 15) | (nibble << 4)
        return
    start, size = _SCALE_AT[type], 4 if type in _WITH_MINIMUM else 2
    blocks[:, start : start + size] = numbers.view(torch.uint8)[:size].to(blocks.device)


@functools.lru_cache
def _shape(type: str) -> _Shape:
    """Measure mean and spread of a sample: decoded values are linear in scale and minimum."""
    _, _, block, size = TYPES_BY_NAME[type]
    generator = torch.Generator().manual_seed(0)
    blocks = random_bytes((_SAMPLE_BLOCKS, size), generator=generator)
    if type == "TQ2_0":
        _drop_threes(blocks)

    def decode(scale: float, minimum: float) -> Tensor:
        _set_scale(blocks, type, scale=scale, minimum=minimum)
        return dequantize(blocks, type, (_SAMPLE_BLOCKS, block))

    minimum = 0.0
    if type in _WITH_MINIMUM:
        minimum = -float(decode(1, 0).mean() / decode(0, 1).mean())
    return _Shape(minimum, float(decode(1, minimum).std()))
