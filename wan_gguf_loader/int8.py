"""Linear layers in int8: a fast mode, opt-in (W8A8).

Input and weight are rounded to int8 with one float32 scale for each row, and multiplied as
integers:

    y = s_x s_w (round(x / s_x) . round(w / s_w)) + bias

The output of a layer is off by about 1.3 % where its numbers are spread as a normal distribution
is; by more where few channels stand out, for the largest of a row sets its scale.

On Hopper the product is `kernels/int8.py`; elsewhere it is `torch._int_mm`, which CUDA cards from
Turing on and CPUs have.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from .dequant import triton_kernels

LARGEST = 127
LEAST_ROWS = 1024
"""Fewer rows stay exact: the layers of time, text and photo, where nothing would be gained."""

_LEAST = 1e-12  # of a row of zeros, whose scale must not be 0


@dataclass(frozen=True, slots=True, eq=False)
class Int8Rows:
    """A tensor `(..., K)` whose rows are rounded.

    Attributes:
        values: int8, `(..., K)`.
        scale: Of each row, `(..., 1)` float32.
        dtype: What the tensor was in, and what a product with it gives.
    """

    values: Tensor
    scale: Tensor
    dtype: torch.dtype

    @property
    def shape(self) -> torch.Size:
        """Shape of the tensor."""
        return self.values.shape

    @property
    def device(self) -> torch.device:
        """Where it lies."""
        return self.values.device


def multiplies_int8(device: torch.device) -> bool:
    """Tell whether a device multiplies int8 matrices."""
    return device.type != "cuda" or torch.cuda.get_device_capability(device) >= (7, 5)


def takes(x: Tensor) -> bool:
    """Tell whether a tensor is to be rounded: it has many rows, and is not float32.

    A model asks for float32 where it needs it.
    """
    return x.dtype != torch.float32 and x[..., 0].numel() >= LEAST_ROWS


def quantize_rows(x: Tensor) -> Int8Rows:
    """Round `(..., K)`; the largest number of each row becomes 127."""
    if (kernels := triton_kernels("int8", x)) is not None:
        values, scale = kernels.quantize_rows(x)
        return Int8Rows(values, scale, x.dtype)
    return _round(x.float(), dtype=x.dtype)


def int8_linear(x: Int8Rows, weight: Int8Rows, bias: Tensor | None) -> Tensor:
    """Apply a linear layer `(N, K)` to `(..., K)`; gives `(..., N)` in the dtype of `x`."""
    rows, scale = x.values.flatten(0, -2), x.scale.flatten(0, -2)
    kernels = triton_kernels("int8", rows)
    if kernels is not None and kernels.multiplies(rows, weight.values):
        product = kernels.linear(rows, scale, weight.values, weight.scale, bias, dtype=x.dtype)
    else:
        whole = torch._int_mm(rows, weight.values.t()).float()
        product = whole.mul_(scale).mul_(weight.scale.t())
        product = (product if bias is None else product.add_(bias)).to(x.dtype)
    return torch.unflatten(product, 0, x.shape[:-1])


class Int8Feed:
    """Gives int8 layers their input, rounded in the same pass that makes it."""

    @staticmethod
    def takes(x: Tensor) -> bool:
        """Tell whether what is made of `x` is rounded."""
        return takes(x)

    @staticmethod
    def normalize(x: Tensor, *, gain: Tensor, shift: Tensor, eps: float) -> Int8Rows:
        """Round `layer_norm(x) * gain + shift` of tokens `(B, N, D)`; see core's `elementwise`."""
        if (kernels := triton_kernels("int8", x)) is not None:
            values, scale = kernels.normalize_rows(x, gain=gain, shift=shift, eps=eps)
            return Int8Rows(values, scale, x.dtype)
        normed = functional.layer_norm(x.float(), x.shape[-1:], eps=eps)
        return _round(torch.addcmul(shift.float(), normed, gain.float()), dtype=x.dtype)

    @staticmethod
    def gelu(x: Tensor) -> Int8Rows:
        """Round the tanh approximation of GELU of `(..., K)`."""
        if (kernels := triton_kernels("int8", x)) is not None:
            values, scale = kernels.gelu_rows(x)
            return Int8Rows(values, scale, x.dtype)
        return _round(functional.gelu(x.float(), approximate="tanh"), dtype=x.dtype)


def _round(x: Tensor, *, dtype: torch.dtype) -> Int8Rows:
    largest = x.abs().amax(dim=-1, keepdim=True).clamp(min=_LEAST)
    values = (x * (LARGEST / largest)).round().to(torch.int8)
    return Int8Rows(values, largest / LARGEST, dtype=dtype)
