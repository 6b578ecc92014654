"""Dequantisation of ggml blocks by Triton: packed bytes are read once, weights are written once.

The plain formulas are `dequant.py` and `dequant_iq.py`. All products here are exact in float32 and
only the last operation rounds, so the results are theirs bit for bit, fused or not. A program
decodes `R` blocks, seen as `(R, groups, values of a group)`. Bytes are loaded one by one (most
block sizes are odd multiples of 2); the L1 cache joins the loads.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import triton
import triton.language as tl
from torch import Tensor

from ..types import TYPES_BY_NAME

_MANY_THREADS = (4096, 4)
_FEW_THREADS = (2048, 1)
"""Values of a program, and warps: few threads with many values each suit the types that take the
most arithmetic. Measured on an H100, `dev/benchmarks/results`."""


def dequantize_into(out: Tensor, packed: Tensor, type: str) -> None:
    """Decode packed bytes of a type in `KERNELS` into `out`, rounding each value once.

    Both are contiguous and on one device.
    """
    _, _, block, block_bytes = TYPES_BY_NAME[type]
    num_blocks = packed.numel() // block_bytes
    values, group, (at_once, num_warps) = KERNELS[type]
    per_program = at_once // block
    _decode[(triton.cdiv(num_blocks, per_program),)](
        packed, out, num_blocks, R=per_program, BYTES=block_bytes, G=block // group, S=group,
        VALUES=values, num_warps=num_warps,
    )  # fmt: skip


@triton.jit
def _decode(
    packed, out, num_blocks, R: tl.constexpr, BYTES: tl.constexpr, G: tl.constexpr,
    S: tl.constexpr, VALUES: tl.constexpr,
):  # fmt: skip
    """Decode R blocks: `VALUES(at, g, j, ok)` gives the values j of the groups g of each block."""
    block = tl.program_id(0).to(tl.int64) * R + tl.arange(0, R)[:, None, None]
    g, j = tl.arange(0, G)[None, :, None], tl.arange(0, S)[None, None, :]
    ok = block < num_blocks
    value = VALUES(packed + block * BYTES, g, j, ok)
    # `(block * G + g) * S + j` is a tenth slower for Q6_K
    tl.store(out + block * (G * S) + g * S + j, value.to(out.dtype.element_ty), mask=ok)


@triton.jit
def _byte(at, ok):
    return tl.load(at, mask=ok, other=0).to(tl.int32)


@triton.jit
def _signed(at, ok):
    return tl.load(at, mask=ok, other=0).to(tl.int8, bitcast=True).to(tl.int32)


@triton.jit
def _half(at, ok):
    word = _byte(at, ok) | (_byte(at + 1, ok) << 8)
    return word.to(tl.int16).to(tl.float16, bitcast=True).to(tl.float32)


@triton.jit
def _q4_0(at, g, j, ok):
    q = ((_byte(at + 2 + j % 16, ok) >> (j // 16 * 4)) & 15) - 8
    return _half(at, ok) * q.to(tl.float32)


@triton.jit
def _q4_1(at, g, j, ok):
    q = (_byte(at + 4 + j % 16, ok) >> (j // 16 * 4)) & 15
    return _half(at, ok) * q.to(tl.float32) + _half(at + 2, ok)


@triton.jit
def _five_bits(high, low, j, ok):
    """Join the low four bits of a value with the fifth, which stands in a word of its own."""
    fifth = (_byte(high + j // 8, ok) >> (j % 8)) & 1
    return ((_byte(low + j % 16, ok) >> (j // 16 * 4)) & 15) | (fifth << 4)


@triton.jit
def _q5_0(at, g, j, ok):
    q = _five_bits(at + 2, at + 6, j, ok) - 16
    return _half(at, ok) * q.to(tl.float32)


@triton.jit
def _q5_1(at, g, j, ok):
    q = _five_bits(at + 4, at + 8, j, ok)
    return _half(at, ok) * q.to(tl.float32) + _half(at + 2, ok)


@triton.jit
def _q8_0(at, g, j, ok):
    return _half(at, ok) * _signed(at + 2 + j, ok).to(tl.float32)


@triton.jit
def _q2_k(at, g, j, ok):
    both = _byte(at + g, ok)
    scale = _half(at + 80, ok) * (both & 15).to(tl.float32)
    low = _half(at + 82, ok) * (both >> 4).to(tl.float32)
    q = (_byte(at + 16 + g // 8 * 32 + g % 2 * 16 + j, ok) >> (g % 8 // 2 * 2)) & 3
    return scale * q.to(tl.float32) - low


@triton.jit
def _q3_k(at, g, j, ok):
    s = g * 2 + j // 16
    six = (_byte(at + 96 + s % 8, ok) >> (s // 8 * 4)) & 15
    six = six | (((_byte(at + 104 + s % 4, ok) >> (s // 4 * 2)) & 3) << 4)
    scale = _half(at + 108, ok) * (six - 32).to(tl.float32)
    high = (_byte(at + j, ok) >> g) & 1
    q = (_byte(at + 32 + g // 4 * 32 + j, ok) >> (g % 4 * 2)) & 3
    q = q - ((high ^ 1) << 2)  # a clear high bit means minus 4
    return scale * q.to(tl.float32)


@triton.jit
def _scale_min(at, g, ok):
    """Read the scale and the minimum of each group of Q4_K and Q5_K."""
    at4 = at + g % 4
    low, mid, mixed = _byte(at4 + 4, ok), _byte(at4 + 8, ok), _byte(at4 + 12, ok)
    scale = tl.where(g < 4, low & 63, (mixed & 15) | ((low >> 2) & 48))
    minimum = tl.where(g < 4, mid & 63, (mixed >> 4) | ((mid >> 2) & 48))
    return _half(at, ok) * scale.to(tl.float32), _half(at + 2, ok) * minimum.to(tl.float32)


@triton.jit
def _q4_k(at, g, j, ok):
    scale, low = _scale_min(at, g, ok)
    q = (_byte(at + 16 + g // 2 * 32 + j, ok) >> (g % 2 * 4)) & 15
    return scale * q.to(tl.float32) - low


@triton.jit
def _q5_k(at, g, j, ok):
    scale, low = _scale_min(at, g, ok)
    q = (_byte(at + 48 + g // 2 * 32 + j, ok) >> (g % 2 * 4)) & 15
    q = q | (((_byte(at + 16 + j, ok) >> g) & 1) << 4)
    return scale * q.to(tl.float32) - low


@triton.jit
def _q6_k(at, g, j, ok):
    scale = _half(at + 208, ok) * _signed(at + 192 + g, ok).to(tl.float32)
    q = (_byte(at + g // 8 * 64 + g % 4 * 16 + j, ok) >> (g % 8 // 4 * 4)) & 15
    high = _byte(at + 128 + g // 8 * 32 + g % 2 * 16 + j, ok) >> (g % 8 // 2 * 2)
    q = (q | ((high & 3) << 4)) - 32
    return scale * q.to(tl.float32)


@triton.jit
def _iq4_value(index):
    """Look a four-bit index up: the sixteen values of IQ4 as the bytes of four words."""
    first = tl.where(index % 8 < 4, 0xBFAD9881, 0xF6EADDCF)  # -127 -104 -83 -65 | -49 -35 -22 -10
    last = tl.where(index % 8 < 4, 0x26190D01, 0x71594535)  # 1 13 25 38 | 53 69 89 113
    word = tl.where(index < 8, first, last).to(tl.uint32)
    return (word >> (index % 4 * 8).to(tl.uint32)).to(tl.int8).to(tl.float32)


@triton.jit
def _iq4_nl(at, g, j, ok):
    index = (_byte(at + 2 + j % 16, ok) >> (j // 16 * 4)) & 15
    return _half(at, ok) * _iq4_value(index)


@triton.jit
def _iq4_xs(at, g, j, ok):
    six = (_byte(at + 4 + g // 2, ok) >> (g % 2 * 4)) & 15
    six = six | (((_byte(at + 2 + g // 4, ok) >> (g % 4 * 2)) & 3) << 4)
    scale = _half(at, ok) * (six - 32).to(tl.float32)
    index = (_byte(at + 8 + g * 16 + j % 16, ok) >> (j // 16 * 4)) & 15
    return scale * _iq4_value(index)


KERNELS: Mapping[str, tuple[Any, int, tuple[int, int]]] = {
    "Q4_0": (_q4_0, 32, _MANY_THREADS),
    "Q4_1": (_q4_1, 32, _MANY_THREADS),
    "Q5_0": (_q5_0, 32, _MANY_THREADS),
    "Q5_1": (_q5_1, 32, _MANY_THREADS),
    "Q8_0": (_q8_0, 32, _MANY_THREADS),
    "Q2_K": (_q2_k, 16, _MANY_THREADS),
    "Q3_K": (_q3_k, 32, _FEW_THREADS),
    "Q4_K": (_q4_k, 32, _MANY_THREADS),
    "Q5_K": (_q5_k, 32, _FEW_THREADS),
    "Q6_K": (_q6_k, 16, _FEW_THREADS),
    "IQ4_NL": (_iq4_nl, 32, _FEW_THREADS),
    "IQ4_XS": (_iq4_xs, 32, _FEW_THREADS),
}
"""The types people's files are in, each with its formula, the values that share a scale,
and the size of a program. Q3_K is faster in groups of 32 than in its own of 16. The plain formulas
decode the other types."""
