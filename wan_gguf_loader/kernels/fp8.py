"""Rounding to fp8 (e4m3) with one scale for each row, by Triton; see `..fp8`."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor


def quantize_rows(x: Tensor) -> tuple[Tensor, Tensor]:
    """Round `(M, K)` to e4m3; gives it and the scales `(M, 1)`, float32."""
    num_rows, width = x.shape
    out = torch.empty_like(x, dtype=torch.float8_e4m3fn)
    scale = torch.empty(num_rows, 1, device=x.device, dtype=torch.float32)
    block = triton.next_power_of_2(width)
    _quantize_rows[(num_rows,)](
        x, out, scale, x.stride(0), D=width, BLOCK=block, num_warps=min(max(block // 1024, 1), 8)
    )
    return out, scale


@triton.jit
def _quantize_rows(x, out, scale, stride, D: tl.constexpr, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    column = tl.arange(0, BLOCK)
    ok = column < D
    value = tl.load(x + row * stride + column, mask=ok, other=0).to(tl.float32)
    step = tl.maximum(tl.max(tl.abs(value), axis=0), 1e-12) / 448.0  # the largest e4m3 number
    tl.store(scale + row, step)
    tl.store(out + row * D + column, (value / step).to(tl.float8e4nv), mask=ok)
