"""Quantisers of the GGUF types the pack writes: Q8_0, Q5_0, Q5_1, Q4_0, Q4_1, Q4_K and Q6_K.

The `gguf` package quantises the block-of-32 types but no K-quant, so Q4_K and Q6_K are our own: a
search over scales for the smallest squared error, in plain torch. Block layouts are those of ggml
(`block_q4_K`, `block_q6_K`); gguf's dequantisation is the test oracle.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType
from gguf.quants import quantize as gguf_quantize
from torch import Tensor

SUPER_BLOCK = 256
_SUPER_BLOCKS_AT_ONCE = 512  # 0.5 MB of float32: the search stays inside the processor's cache
_BY_GGUF = ("Q8_0", "Q5_0", "Q5_1", "Q4_0", "Q4_1")


class _Affine(NamedTuple):
    """`x ~ scale * q - minimum` of each sub-block, both `(n, sub_blocks)` and not negative."""

    scale: Tensor
    minimum: Tensor


def quantize(weight: Tensor, type: str) -> Tensor:
    """Quantise the rows of a matrix.

    Args:
        weight: Any floating-point matrix `(rows, columns)`; columns are a whole number of blocks.
        type: One of Q8_0, Q5_0, Q5_1, Q4_0, Q4_1, Q4_K, Q6_K.

    Returns:
        Packed rows, uint8 `(rows, row_bytes)`, on the CPU.

    Raises:
        ValueError: If the type is not one of these, the rows do not divide into its blocks, or a
            weight is not finite or beyond float16.
    """
    if type not in (*_BY_GGUF, *_SEARCHED):
        raise ValueError(f"{type} cannot be written; choose from {(*_BY_GGUF, *_SEARCHED)}.")
    block, block_bytes = GGML_QUANT_SIZES[GGMLQuantizationType[type]]
    if weight.ndim != 2 or weight.shape[1] % block:
        raise ValueError(
            f"A weight of shape {tuple(weight.shape)} cannot be {type}: "
            f"it must be a matrix with a multiple of {block} columns."
        )
    values = weight.detach().to(device="cpu", dtype=torch.float32).contiguous()
    if values.numel() and not float(values.abs().amax()) <= torch.finfo(torch.float16).max:
        raise ValueError(
            f"A weight of shape {tuple(weight.shape)} holds NaN, infinity or a value beyond "
            "float16, the type of the block scales."
        )
    if type in _BY_GGUF:
        return torch.from_numpy(gguf_quantize(values.numpy(), GGMLQuantizationType[type]))
    blocks = values.view(-1, SUPER_BLOCK)
    packed = torch.empty(len(blocks), block_bytes, dtype=torch.uint8)
    for start in range(0, len(blocks), _SUPER_BLOCKS_AT_ONCE):
        chunk = slice(start, start + _SUPER_BLOCKS_AT_ONCE)
        packed[chunk] = _SEARCHED[type](blocks[chunk])
    return packed.view(len(values), -1)


def _q4_k(blocks: Tensor) -> Tensor:
    """Pack `(n, 256)` as `(n, 144)`: 8 sub-blocks of 32, 6-bit scales and minima, 4-bit values."""
    x = blocks.view(-1, 8, 32)
    affine = _search_affine(x)
    d, scales = _quantize_scales(affine.scale, largest=63)
    d_min, minima = _quantize_scales(affine.minimum, largest=63)
    scale, minimum = d * scales, d_min * minima
    values = (x + minimum[..., None]).mul_(_reciprocal(scale)[..., None]).round_().clamp_(0, 15)
    values = values.to(torch.uint8).view(-1, 4, 2, 32)
    sc, m = scales.to(torch.uint8), minima.to(torch.uint8)
    return torch.cat(
        [
            d.half().view(torch.uint8),
            d_min.half().view(torch.uint8),
            sc[:, :4] | (sc[:, 4:] >> 4 << 6),
            m[:, :4] | (m[:, 4:] >> 4 << 6),
            (sc[:, 4:] & 15) | (m[:, 4:] << 4),
            (values[:, :, 0] | (values[:, :, 1] << 4)).view(-1, 128),
        ],
        dim=1,
    )


def _search_affine(x: Tensor) -> _Affine:
    """Least-squares scale and minimum of each sub-block `(n, s, 32)` over a range of roundings."""
    low, high = x.amin(-1).clamp(max=0), x.amax(-1)
    inverse = _reciprocal(high - low)
    sum_x, sum_xx = x.sum(-1), x.square().sum(-1)
    best_error = torch.full_like(low, torch.inf)
    best_scale, best_minimum = torch.zeros_like(low), -low
    for i_step in range(12):
        levels = 13.0 + 0.35 * i_step  # 13.0 .. 16.85 levels across the range; 15 is min to max
        q = (x - low[..., None]).mul_((inverse * levels)[..., None]).round_().clamp_(0, 15)
        sum_q, sum_qq, sum_xq = q.sum(-1), q.square().sum(-1), (q * x).sum(-1)
        scale = (32 * sum_xq - sum_x * sum_q) * _reciprocal(32 * sum_qq - sum_q.square())
        offset = (sum_x - scale * sum_q) / 32
        through_zero = offset > 0  # ggml stores minus the offset, unsigned
        scale = torch.where(through_zero, sum_xq * _reciprocal(sum_qq), scale)
        offset = offset.clamp(max=0)
        error = sum_xx - scale * sum_xq - offset * sum_x  # by the normal equations
        better = (error < best_error) & (scale > 0)
        best_error = torch.where(better, error, best_error)
        best_scale = torch.where(better, scale, best_scale)
        best_minimum = torch.where(better, -offset, best_minimum)
    return _Affine(best_scale, best_minimum)


def _q6_k(blocks: Tensor) -> Tensor:
    """Pack `(n, 256)` as `(n, 210)`: 16 sub-blocks of 16, signed 8-bit scales, 6-bit values."""
    x = blocks.view(-1, 16, 16)
    d, scales = _quantize_scales(_search_symmetric(x), largest=127)
    scaled = _reciprocal(d * scales)[..., None] * x
    values = scaled.round_().clamp_(-32, 31).add_(32).to(torch.uint8).view(-1, 2, 4, 32)
    low, high = values & 15, values >> 4
    return torch.cat(
        [
            (low[:, :, :2] | (low[:, :, 2:] << 4)).reshape(-1, 128),
            (
                high[:, :, 0] | (high[:, :, 1] << 2) | (high[:, :, 2] << 4) | (high[:, :, 3] << 6)
            ).view(-1, 64),
            scales.to(torch.int8).view(torch.uint8),
            d.half().view(torch.uint8),
        ],
        dim=1,
    )


def _search_symmetric(x: Tensor) -> Tensor:
    """Least-squares signed scale of each sub-block `(n, s, 16)` over a range of roundings."""
    extreme = x.gather(-1, x.abs().argmax(-1, keepdim=True)).squeeze(-1)
    inverse = _reciprocal(extreme)
    best_gain = torch.zeros_like(extreme)
    best_scale = torch.zeros_like(extreme)
    for i_step in range(13):
        levels = -31.0 - 0.25 * i_step  # the extreme at -31 .. -34, the longer side of -32 .. 31
        q = (x * (inverse * levels)[..., None]).round_().clamp_(-32, 31)
        sum_xq, sum_qq = (q * x).sum(-1), q.square().sum(-1)
        scale = sum_xq * _reciprocal(sum_qq)
        gain = scale * sum_xq  # the squared error is sum(x^2) minus this
        better = gain > best_gain
        best_gain = torch.where(better, gain, best_gain)
        best_scale = torch.where(better, scale, best_scale)
    return best_scale


def _quantize_scales(scales: Tensor, *, largest: int) -> tuple[Tensor, Tensor]:
    """Write sub-block scales `(n, s)` as a float16 `d (n, 1)` times whole numbers."""
    d = _to_half(scales.abs().amax(1, keepdim=True) / largest)
    return d, (scales * _reciprocal(d)).round_().clamp_(-largest, largest)


def _to_half(values: Tensor) -> Tensor:
    return values.half().float()


def _reciprocal(values: Tensor) -> Tensor:
    """Give 1 / values, or 0 if float32 cannot hold it: an empty block quantises to zeros."""
    inverse = values.reciprocal()
    return torch.where(torch.isfinite(inverse), inverse, 0.0)


_SEARCHED: dict[str, Callable[[Tensor], Tensor]] = {"Q4_K": _q4_k, "Q6_K": _q6_k}
