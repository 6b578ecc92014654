"""Triton kernels of `..elementwise` and `..residual`, each one pass over memory.

All arithmetic is float32 and rounds once, at the end. A program works on one token.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

_ADD_VALUES = 2048
_ADD_PAIRS = 512


def normalize(x: Tensor, *, gain: Tensor, shift: Tensor, eps: float) -> Tensor:
    """Layer norm of `(B, N, D)`, times `gain`, plus `shift`, `(D,)` or `(B, 1, D)` each."""
    x = x.contiguous()
    batch, num_tokens, width = x.shape
    out = torch.empty_like(x)
    block = triton.next_power_of_2(width)
    _normalize[(batch * num_tokens,)](
        x, gain.contiguous(), shift.contiguous(), out, num_tokens,
        width if gain.numel() > width else 0, eps, D=width, BLOCK=block, num_warps=_warps(block),
    )  # fmt: skip
    return out


def rms_norm(
    x: Tensor,
    *,
    weight: Tensor | None,
    eps: float,
    cos: Tensor | None = None,
    sin: Tensor | None = None,
) -> Tensor:
    """Root-mean-square norm of `(B, N, D)`, unless `weight` `(D,)` is `None`, then rotation.

    The tables `cos` and `sin` are `(N, head width / 2)` or `(B, N, head width / 2)`, float32.
    """
    x = x.contiguous()
    batch, num_tokens, width = x.shape
    out = torch.empty_like(x)
    block = triton.next_power_of_2(width)
    turns = cos is not None
    norms = weight is not None
    tables = (cos.contiguous(), sin.contiguous()) if cos is not None and sin is not None else (x, x)
    _rms_norm[(batch * num_tokens,)](
        x, x if weight is None else weight.contiguous(), *tables, out,
        batch * num_tokens if turns and tables[0].ndim == 3 else num_tokens, eps,
        D=width, PAIRS=tables[0].shape[-1] if turns else 1, NORMS=norms, TURNS=turns, BLOCK=block,
        num_warps=_warps(block),
    )  # fmt: skip
    return out


def add_gated(x: Tensor, y: Tensor, *, gate: Tensor) -> None:
    """Add `y * gate` to `x`, both `(B, N, D)` and contiguous; the gate is `(B, 1, D)`."""
    _, num_tokens, width = x.shape
    grid = (triton.cdiv(x.numel(), _ADD_VALUES),)
    _add_gated[grid](
        x, y, gate.contiguous(), x.numel(), num_tokens * width, D=width, BLOCK=_ADD_VALUES
    )


def add_with_residual(x: Tensor, y: Tensor, *, gate: Tensor | float, residual: Tensor) -> None:
    """Add `y * gate` to `x` and its residual, all contiguous; see `..residual.cut`.

    Args:
        x: Tokens, `(B, N, D)`, bfloat16, D even.
        y: What is added, likewise.
        gate: A number, or `(B, 1, D)`.
        residual: `(B, N, D / 2)`, uint8.
    """
    _, num_tokens, width = x.shape
    grid = (triton.cdiv(residual.numel(), _ADD_PAIRS),)
    each, number = (gate.contiguous(), 0.0) if isinstance(gate, Tensor) else (None, gate)
    _add_with_residual[grid](
        x.view(torch.int32), y.view(torch.int32), y if each is None else each, residual, number,
        residual.numel(), num_tokens * width // 2, GATED=each is not None, PAIRS=width // 2,
        BLOCK=_ADD_PAIRS,
    )  # fmt: skip


def _warps(block: int) -> int:
    return min(max(block // 1024, 1), 8)


@triton.jit
def _normalize(x, gain, shift, out, num_tokens, stride, eps, D: tl.constexpr, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    column = tl.arange(0, BLOCK)
    ok = column < D
    value = tl.load(x + row * D + column, mask=ok, other=0).to(tl.float32)
    mean = tl.sum(value, axis=0) / D
    value = tl.where(ok, value - mean, 0.0)
    scale = tl.rsqrt(tl.sum(value * value, axis=0) / D + eps)
    own = row // num_tokens * stride + column  # of this entry of the batch, if each has its own
    factor = tl.load(gain + own, mask=ok, other=0).to(tl.float32)
    offset = tl.load(shift + own, mask=ok, other=0).to(tl.float32)
    result = value * scale * factor + offset
    tl.store(out + row * D + column, result.to(out.dtype.element_ty), mask=ok)


@triton.jit
def _rms_norm(
    x, weight, cos, sin, out, num_places, eps,
    D: tl.constexpr, PAIRS: tl.constexpr, NORMS: tl.constexpr, TURNS: tl.constexpr,
    BLOCK: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    column = tl.arange(0, BLOCK)
    ok = column < D
    value = tl.load(x + row * D + column, mask=ok, other=0).to(tl.float32)
    if NORMS:
        scale = tl.rsqrt(tl.sum(value * value, axis=0) / D + eps)
        value = value * scale * tl.load(weight + column, mask=ok, other=0).to(tl.float32)
    if TURNS:
        even, odd = tl.split(tl.reshape(value, (BLOCK // 2, 2)))
        at = row % num_places * PAIRS + tl.arange(0, BLOCK // 2) % PAIRS
        c = tl.load(cos + at)
        s = tl.load(sin + at)
        value = tl.reshape(tl.join(even * c - odd * s, even * s + odd * c), (BLOCK,))
    tl.store(out + row * D + column, value.to(out.dtype.element_ty), mask=ok)


@triton.jit
def _add_gated(x, y, gate, num_values, entry, D: tl.constexpr, BLOCK: tl.constexpr):
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    ok = at < num_values
    factor = tl.load(gate + at // entry * D + at % D, mask=ok, other=0).to(tl.float32)
    value = tl.load(x + at, mask=ok, other=0).to(tl.float32)
    value += tl.load(y + at, mask=ok, other=0).to(tl.float32) * factor
    tl.store(x + at, value.to(x.dtype.element_ty), mask=ok)


@triton.jit
def _add_with_residual(
    x, y, gate, residual, number, num_pairs, entry,
    GATED: tl.constexpr, PAIRS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Work on pairs: two bfloat16 in a word, the first one low, and two residuals in a byte."""
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    ok = at < num_pairs
    first, second = number, number
    if GATED:
        column = gate + (at // entry * PAIRS + at % PAIRS) * 2
        first = tl.load(column, mask=ok, other=0).to(tl.float32)
        second = tl.load(column + 1, mask=ok, other=0).to(tl.float32)
    both, added = tl.load(x + at, mask=ok, other=0), tl.load(y + at, mask=ok, other=0)
    left = tl.load(residual + at, mask=ok, other=0).to(tl.int32)
    low, low_left = _added(both << 16, left & 15, added << 16, first)
    high, high_left = _added(both & -65536, left >> 4, added & -65536, second)
    tl.store(x + at, (low & 65535) | (high << 16), mask=ok)
    tl.store(residual + at, (low_left | (high_left << 4)).to(tl.uint8), mask=ok)


@triton.jit
def _added(bits, left, added, factor):
    """Add to a bfloat16, given as the bits of its float32, and its residual; gives both."""
    bits += ((left ^ 8) - 8) << 12
    value = bits.to(tl.float32, bitcast=True) + added.to(tl.float32, bitcast=True) * factor
    bits = value.to(tl.int32, bitcast=True)
    top = (bits + 32768) >> 16
    return top, tl.minimum((bits - (top << 16) + 2048) >> 12, 7) & 15
