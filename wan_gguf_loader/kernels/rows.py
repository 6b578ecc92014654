"""Decoding of rows with a scale each (`rows.py`) by Triton, with the plain formulas' results.

FP8 is widened through float16, whose bit patterns contain it, so that cards without fp8 decode it
too; every step before the product with the scale is exact.
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

_COLUMNS = 4096
"""Values of a program, 16 of each thread: one load of 16 bytes."""


def decode_into(out: Tensor, packed: Tensor, type: str) -> None:
    """Decode packed rows into `out`, rounding each float32 value once to its dtype.

    Args:
        out: Contiguous, `(rows, K)`.
        packed: Contiguous uint8, `(rows, K + 16)`, on the same device.
        type: A row type.
    """
    rows, row_len = out.shape
    grid = (rows, triton.cdiv(row_len, _COLUMNS))
    _decode[grid](
        packed, out, row_len, packed.shape[1], KIND=type, COLUMNS=_COLUMNS,
        num_warps=8,
    )  # fmt: skip


@triton.jit
def _decode(
    packed, out, row_len, row_bytes, KIND: tl.constexpr, COLUMNS: tl.constexpr
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    ok = column < row_len
    at = packed + row * row_bytes
    byte = tl.load(at + column, mask=ok, other=0)
    scale = tl.load((at + row_len).to(tl.pointer_type(tl.float32)))
    if KIND == "I8_ROWS":
        value = byte.to(tl.int8, bitcast=True).to(tl.float32)
    elif KIND == "F8_E5M2_ROWS":
        value = (byte.to(tl.int16) << 8).to(tl.float16, bitcast=True).to(tl.float32)
    else:
        wide = byte.to(tl.int16)
        half = ((wide & 0x7F) << 7) | ((wide & 0x80) << 8)
        value = half.to(tl.float16, bitcast=True).to(tl.float32) * 256.0
        value = tl.where((wide & 0x7F) == 0x7F, float("nan"), value)
    value = value * scale
    tl.store(out + row * row_len + column, value.to(out.dtype.element_ty), mask=ok)
