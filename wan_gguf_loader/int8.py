"""Linear layers in int8: a fast mode, opt-in (W8A8).

Input and weight are rounded to int8 with one float32 scale for each row, and multiplied as
integers:

    y = s_x s_w (round(x / s_x) . round(w / s_w)) + bias

The relative error of a layer is about 1.3 % for normally distributed values, and larger where a
few channels are outliers, because the largest value of a row sets its scale.

On Hopper `kernels/int8_product.py` multiplies; elsewhere `torch._int_mm`, which runs on CPUs and on
CUDA cards from Turing on.
"""

from __future__ import annotations

import functools
import importlib.metadata
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from .dequant import triton_kernels

LARGEST = 127
LEAST_ROWS = 1024
"""Shorter sequences stay exact: the layers of time, text, photo and voices, where int8 gains
nothing."""
_ROWS_AT_ONCE = 2048
"""Rows per chunk where no kernel runs; bounds the float32 scratch."""

_HOPPER = 9  # major compute capability
_LEAST = 1e-12  # so that the scale of a row of zeros is not 0


@dataclass(frozen=True, slots=True, eq=False)
class Int8Rows:
    """A tensor `(..., K)` quantised by rows; used in place of a tensor.

    Attributes:
        values: int8, `(..., K)`.
        scale: Scale of each row, `(..., 1)` float32.
        dtype: Dtype of the tensor, and of a product with it.
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
        """Device of the values."""
        return self.values.device


def multiplies_int8(device: torch.device) -> bool:
    """Tell whether a device multiplies int8 matrices."""
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= (7, 5)
    return device.type == "cpu"


def takes(x: Tensor) -> bool:
    """Tell whether a tensor `(..., N, K)` is quantised: it has many rows and is not float32.

    A model uses float32 where it needs the precision. Rows are counted per sequence, independent
    of the batch size.
    """
    long = x.ndim > 1 and x.shape[-2] >= LEAST_ROWS
    return long and x.dtype != torch.float32 and x.shape[-1] % 16 == 0


def quantize_rows(x: Tensor) -> Int8Rows:
    """Quantise `(..., K)`; the largest value of each row becomes 127."""
    if (kernels := triton_kernels("int8", x)) is not None:
        values, scale = kernels.quantize_rows(x)
        return Int8Rows(values, scale, x.dtype)
    return _round(x, lambda plain: plain)


def int8_linear(x: Int8Rows, weight: Int8Rows, bias: Tensor | None) -> Tensor:
    """Apply a linear layer `(N, K)` to `(..., K)`; returns `(..., N)` in the dtype of `x`."""
    rows, scale = x.values.flatten(0, -2), x.scale.flatten(0, -2)
    kernels = triton_kernels("int8_product", rows) if _suits_hopper(x, weight) else None
    if kernels is not None:
        product = kernels.linear(rows, scale, weight.values, weight.scale, bias, dtype=x.dtype)
    else:
        product = torch.empty(len(rows), len(weight.values), dtype=x.dtype, device=x.device)
        for part in _parts(len(rows)):
            whole = torch._int_mm(rows[part], weight.values.t()).float()
            whole.mul_(scale[part]).mul_(weight.scale.t())
            product[part] = whole if bias is None else whole.add_(bias)
    return torch.unflatten(product, 0, x.shape[:-1])


def _suits_hopper(x: Int8Rows, weight: Int8Rows) -> bool:
    """Tell whether `kernels/int8_product.py` can multiply these."""
    compiling = torch.compiler.is_compiling()  # the compiler cannot trace the kernel
    if compiling or not x.values.is_cuda or torch.version.hip is not None:
        return False
    outputs, inputs = weight.shape
    return (
        torch.cuda.get_device_capability(x.device)[0] == _HOPPER
        and knows_gluon()
        and (outputs % 256, inputs % 16, x.dtype.itemsize) == (0, 0, 2)
    )


@functools.cache
def knows_gluon() -> bool:
    """Tell whether this Triton has the Gluon that the kernel needs, which changes by version."""
    try:
        major, minor, *_ = importlib.metadata.version("triton").split(".")
    except importlib.metadata.PackageNotFoundError:
        return False
    return (3, 6) <= (int(major), int(minor)) <= (3, 9)


class Int8Feed:
    """Computes the input of int8 layers and quantises it in the same pass."""

    @staticmethod
    def takes(x: Tensor) -> bool:
        """Tell whether a result computed from `x` is quantised."""
        return takes(x)

    @staticmethod
    def normalize(x: Tensor, *, gain: Tensor, shift: Tensor, eps: float) -> Int8Rows:
        """Quantise `layer_norm(x) * gain + shift` of `(B, N, D)`; see core's `elementwise`."""
        if (kernels := triton_kernels("int8", x)) is not None:
            values, scale = kernels.normalize_rows(x, gain=gain, shift=shift, eps=eps)
            return Int8Rows(values, scale, x.dtype)

        def normed(plain: Tensor) -> Tensor:
            unit = functional.layer_norm(plain, plain.shape[-1:], eps=eps)
            return torch.addcmul(shift.float(), unit, gain.float())

        return _round(x, normed)

    @staticmethod
    def gelu(x: Tensor) -> Int8Rows:
        """Quantise the tanh approximation of GELU of `(..., K)`."""
        if (kernels := triton_kernels("int8", x)) is not None:
            values, scale = kernels.gelu_rows(x)
            return Int8Rows(values, scale, x.dtype)
        return _round(x, lambda plain: functional.gelu(plain, approximate="tanh"))


def _round(x: Tensor, make: Callable[[Tensor], Tensor]) -> Int8Rows:
    """Apply `make` to `(..., N, K)` in float32 and quantise the result."""
    values = torch.empty_like(x, dtype=torch.int8)
    scale = torch.empty(*x.shape[:-1], 1, dtype=torch.float32, device=x.device)
    for part in _parts(x.shape[-2], entries=x[..., 0, 0].numel()):
        made = make(x[..., part, :].float())
        largest = made.abs().amax(dim=-1, keepdim=True).clamp(min=_LEAST)
        values[..., part, :] = (made * (LARGEST / largest)).round_()
        scale[..., part, :] = largest / LARGEST
    return Int8Rows(values, scale, x.dtype)


def _parts(num_rows: int, *, entries: int = 1) -> Iterator[slice]:
    """Split the rows of each entry evenly: `torch._int_mm` on CUDA needs at least 17 rows."""
    step = math.ceil(num_rows / math.ceil(entries * num_rows / _ROWS_AT_ONCE))
    return (slice(start, start + step) for start in range(0, num_rows, step))
