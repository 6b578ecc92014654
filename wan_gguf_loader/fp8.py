"""Linear layers in fp8 (e4m3): a fast mode, opt-in, for cards with fp8 matrix units.

Weight and input are rounded to e4m3 with one float32 scale for each row, the product is summed in
float32 by `torch._scaled_mm`. Every number keeps 3 bits of mantissa, so a layer's output is off by
about 2.6 %, whatever the scales. On other devices the same is computed in float32.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from .dequant import triton_kernels

LARGEST = 448.0
"""The largest e4m3 number."""

_LEAST = 1e-12  # of a row of zeros, whose scale must not be 0


class Fp8Rows(NamedTuple):
    """A matrix in e4m3 `(M, K)` and the scale of each row `(M, 1)`, float32."""

    values: Tensor
    scale: Tensor


def quantize_rows(x: Tensor) -> Fp8Rows:
    """Round a matrix `(M, K)` to e4m3, the largest number of each row to the largest e4m3."""
    kernels = triton_kernels("fp8", x)
    if kernels is not None:
        return Fp8Rows(*kernels.quantize_rows(x))
    plain = x.float()
    scale = plain.abs().amax(dim=1, keepdim=True).clamp(min=_LEAST) / LARGEST
    return Fp8Rows((plain / scale).to(torch.float8_e4m3fn), scale)


def fp8_linear(x: Fp8Rows, weight: Fp8Rows, bias: Tensor | None, *, dtype: torch.dtype) -> Tensor:
    """Apply a linear layer `(N, K)` to `(M, K)`; gives `(M, N)` in `dtype`."""
    if has_fp8_units(x.values.device):
        product: Tensor = torch._scaled_mm(
            x.values,
            weight.values.t(),
            x.scale,
            weight.scale.t(),
            bias=bias,
            out_dtype=dtype,
            use_fast_accum=True,
        )
        return product
    rows, columns = (part.values.float() * part.scale for part in (x, weight))
    return functional.linear(rows, columns, None if bias is None else bias.float()).to(dtype)


def has_fp8_units(device: torch.device) -> bool:
    """Tell whether a device multiplies fp8 matrices."""
    return device.type == "cuda" and torch.cuda.get_device_capability(device) >= (8, 9)
