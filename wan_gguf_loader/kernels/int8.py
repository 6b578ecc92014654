"""Rounding of rows to int8, and the product of two int8 matrices, by Triton; see `..int8`.

The product is for Hopper: its matrix units read tiles that the copy engine brings, one program a
multiprocessor goes from tile to tile, and the scales and the bias are applied before the only
write.
"""

from __future__ import annotations

import importlib.util

import torch
import triton
import triton.language as tl
from torch import Tensor

_PLAIN, _NORM, _GELU = tl.constexpr(0), tl.constexpr(1), tl.constexpr(2)
_TILE = (128, 256, 128)
"""Rows, columns and depth of a tile: 1210 to 1280 TOPS on an H100, the fastest of those tried."""


def quantize_rows(x: Tensor) -> tuple[Tensor, Tensor]:
    """Round `(..., K)`; gives the int8 values and the scales `(..., 1)`, float32."""
    return _round(x, _PLAIN)


def gelu_rows(x: Tensor) -> tuple[Tensor, Tensor]:
    """The same of the tanh approximation of GELU."""
    return _round(x, _GELU)


def normalize_rows(x: Tensor, *, gain: Tensor, shift: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """The same of layer norm `(B, N, D)` times `gain` plus `shift`, `(D,)` or `(B, 1, D)`."""
    return _round(x, _NORM, gain=gain.contiguous(), shift=shift.contiguous(), eps=eps)


def multiplies(x: Tensor, weight: Tensor) -> bool:
    """Tell whether `linear` is for these.

    On Hopper, by a Triton that knows its copy engine, with rows that this engine can copy.
    """
    hopper = torch.version.hip is None and torch.cuda.get_device_capability(x.device)[0] == 9
    has_engine = importlib.util.find_spec("triton.tools.tensor_descriptor") is not None
    return hopper and has_engine and weight.shape[1] % 16 == 0 and weight.shape[0] % 8 == 0


def linear(
    x: Tensor,
    x_scale: Tensor,
    weight: Tensor,
    weight_scale: Tensor,
    bias: Tensor | None,
    *,
    dtype: torch.dtype,
    num_programs: int | None = None,
) -> Tensor:
    """Multiply `(M, K)` by `(N, K)` with their scales, `(M, 1)` and `(N, 1)`; gives `(M, N)`."""
    from triton.tools.tensor_descriptor import TensorDescriptor  # older Tritons lack it

    (num_rows, depth), columns = x.shape, weight.shape[0]
    rows_at_once, columns_at_once, depth_at_once = _TILE
    out = torch.empty(num_rows, columns, device=x.device, dtype=dtype)
    tiles = triton.cdiv(num_rows, rows_at_once) * triton.cdiv(columns, columns_at_once)
    if num_programs is None:
        num_programs = torch.cuda.get_device_properties(x.device).multi_processor_count
    _linear[(min(num_programs, tiles),)](
        TensorDescriptor.from_tensor(x, [rows_at_once, depth_at_once]),
        TensorDescriptor.from_tensor(weight, [columns_at_once, depth_at_once]),
        TensorDescriptor.from_tensor(out, [rows_at_once, columns_at_once]),
        x_scale, weight_scale, x_scale if bias is None else bias, num_rows, columns, depth,
        HAS_BIAS=bias is not None, ROWS=rows_at_once, COLUMNS=columns_at_once, DEPTH=depth_at_once,
        PROGRAMS=min(num_programs, tiles), num_stages=3, num_warps=8,
    )  # fmt: skip
    return out


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
        num_warps=min(max(block // 1024, 1), 8),
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


@triton.jit
def _linear(
    x, weight, out, x_scale, weight_scale, bias, num_rows, num_columns, depth,
    HAS_BIAS: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr, DEPTH: tl.constexpr,
    PROGRAMS: tl.constexpr,
):  # fmt: skip
    down, across = tl.cdiv(num_rows, ROWS), tl.cdiv(num_columns, COLUMNS)
    for tile in tl.range(tl.program_id(0), down * across, PROGRAMS, flatten=True):
        # Eight tiles down, then the next column: what they share stays in the cache.
        first = tile // (8 * across) * 8
        high = min(down - first, 8)
        row = (first + tile % (8 * across) % high) * ROWS
        column = tile % (8 * across) // high * COLUMNS
        total = tl.zeros((ROWS, COLUMNS), tl.int32)
        for at in range(0, depth, DEPTH):
            total = tl.dot(
                x.load([row, at]), weight.load([column, at]).T, total, out_dtype=tl.int32
            )
        rows, columns = row + tl.arange(0, ROWS), column + tl.arange(0, COLUMNS)
        here = columns < num_columns
        scale = tl.load(x_scale + rows, mask=rows < num_rows, other=0)
        result = total.to(tl.float32) * scale[:, None]
        result *= tl.load(weight_scale + columns, mask=here, other=0)[None, :]
        if HAS_BIAS:
            result += tl.load(bias + columns, mask=here, other=0).to(tl.float32)[None, :]
        out.store([row, column], result.to(out.dtype))
