"""Rounding of rows to int8 by Triton, one pass over memory; see `..int8`."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

_PLAIN, _NORM, _GELU = tl.constexpr(0), tl.constexpr(1), tl.constexpr(2)
_VALUES_A_WARP = 4096
"""Few warps of many values each; measured on an H100, `dev/benchmarks/results`."""


def quantize_rows(x: Tensor) -> tuple[Tensor, Tensor]:
    """Round `(..., K)`; gives the int8 values and the scales `(..., 1)`, float32."""
    return _round(x, _PLAIN)


def gelu_rows(x: Tensor) -> tuple[Tensor, Tensor]:
    """The same of the tanh approximation of GELU."""
    return _round(x, _GELU)


def normalize_rows(x: Tensor, *, gain: Tensor, shift: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """The same of layer norm `(B, N, D)` times `gain` plus `shift`, `(D,)` or `(B, 1, D)`."""
    return _round(x, _NORM, gain=gain.contiguous(), shift=shift.contiguous(), eps=eps)


def _round(
    x: Tensor,
    kind: tl.constexpr,
    *,
    gain: Tensor | None = None,
    shift: Tensor | None = None,
    eps: float = 0.0,
) -> tuple[Tensor, Tensor]:
    x = x.contiguous()
    width = x.shape[-1]
    out = torch.empty_like(x, dtype=torch.int8)
    scale = torch.empty(*x.shape[:-1], 1, device=x.device, dtype=torch.float32)
    block = triton.next_power_of_2(width)
    stride = width if gain is not None and gain.numel() > width else 0
    _round_rows[(scale.numel(),)](
        x, x if gain is None else gain, x if shift is None else shift, out, scale,
        x.shape[-2], stride, eps, KIND=kind, D=width, BLOCK=block,
        num_warps=min(max(block // _VALUES_A_WARP, 1), 8),
    )  # fmt: skip
    return out, scale


@triton.jit
def _round_rows(
    x, gain, shift, out, scale, num_tokens, stride, eps,
    KIND: tl.constexpr, D: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    column = tl.arange(0, BLOCK)
    ok = column < D
    value = tl.load(x + row * D + column, mask=ok, other=0).to(tl.float32)
    if KIND == _NORM:
        value = tl.where(ok, value - tl.sum(value, axis=0) / D, 0.0)
        spread = tl.rsqrt(tl.sum(value * value, axis=0) / D + eps)
        own = row // num_tokens * stride + column  # of this entry of the batch, if each has its own
        factor = tl.load(gain + own, mask=ok, other=0).to(tl.float32)
        value = value * spread * factor + tl.load(shift + own, mask=ok, other=0).to(tl.float32)
    if KIND == _GELU:
        inner = 0.7978845608028654 * (value + 0.044715 * value * value * value)
        # x (1 + tanh(inner)) / 2; beyond 80 the result is 0 either way, but exp overflows.
        value = value / (1.0 + tl.exp(tl.minimum(-2.0 * inner, 80.0)))
    largest = tl.maximum(tl.max(tl.abs(value), axis=0), 1e-12)
    tl.store(scale + row, largest / 127.0)
    # 1.5 * 2^23 leaves no room for a fraction: the sum is rounded, half to even.
    near = value * (127.0 / largest) + 12582912.0 - 12582912.0
    tl.store(out + row * D + column, near.to(tl.int8), mask=ok)
