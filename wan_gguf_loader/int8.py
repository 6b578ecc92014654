"""Linear layers in int8: a fast mode, opt-in (W8A8).

Input and weight are rounded to int8 with one float32 scale for each row, and multiplied as
integers:

    y = s_x s_w (round(x / s_x) . round(w / s_w)) + bias

The output of a layer is off by about 1.3 % where its numbers are spread as a normal distribution
is; by more where few channels stand out, for the largest of a row sets its scale.

On Hopper the product is `kernels/int8_product.py`; elsewhere it is `torch._int_mm`, which CUDA
cards from Turing on and CPUs have.
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
"""Sequences of fewer rows stay exact: the layers of time, text, photo and voices, where nothing
would be gained."""
_ROWS_AT_ONCE = 2048
"""So many rows are worked on at once where no kernel does it: what lies in between is float32."""

_HOPPER = 9  # major compute capability
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
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= (7, 5)
    return device.type == "cpu"


def takes(x: Tensor) -> bool:
    """Tell whether a tensor `(..., N, K)` is to be rounded: it has many rows, and is not float32.

    A model asks for float32 where it needs it. The number of entries of a batch decides nothing.
    """
    long = x.ndim > 1 and x.shape[-2] >= LEAST_ROWS
    return long and x.dtype != torch.float32 and x.shape[-1] % 16 == 0


def quantize_rows(x: Tensor) -> Int8Rows:
    """Round `(..., K)`; the largest number of each row becomes 127."""
    if (kernels := triton_kernels("int8", x)) is not None:
        values, scale = kernels.quantize_rows(x)
        return Int8Rows(values, scale, x.dtype)
    return _round(x, lambda plain: plain)


def int8_linear(x: Int8Rows, weight: Int8Rows, bias: Tensor | None) -> Tensor:
    """Apply a linear layer `(N, K)` to `(..., K)`; gives `(..., N)` in the dtype of `x`."""
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
    """Tell whether `kernels/int8_product.py` multiplies these."""
    compiling = torch.compiler.is_compiling()  # which neither sees into the kernel nor needs it
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
    """Tell whether this Triton has the Gluon of that kernel; it may change with every version."""
    try:
        major, minor, *_ = importlib.metadata.version("triton").split(".")
    except importlib.metadata.PackageNotFoundError:
        return False
    return (3, 6) <= (int(major), int(minor)) <= (3, 9)


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

        def normed(plain: Tensor) -> Tensor:
            unit = functional.layer_norm(plain, plain.shape[-1:], eps=eps)
            return torch.addcmul(shift.float(), unit, gain.float())

        return _round(x, normed)

    @staticmethod
    def gelu(x: Tensor) -> Int8Rows:
        """Round the tanh approximation of GELU of `(..., K)`."""
        if (kernels := triton_kernels("int8", x)) is not None:
            values, scale = kernels.gelu_rows(x)
            return Int8Rows(values, scale, x.dtype)
        return _round(x, lambda plain: functional.gelu(plain, approximate="tanh"))


def _round(x: Tensor, make: Callable[[Tensor], Tensor]) -> Int8Rows:
    """Round what `make` makes of `(..., N, K)` in float32."""
    values = torch.empty_like(x, dtype=torch.int8)
    scale = torch.empty(*x.shape[:-1], 1, dtype=torch.float32, device=x.device)
    for part in _parts(x.shape[-2], entries=x[..., 0, 0].numel()):
        made = make(x[..., part, :].float())
        largest = made.abs().amax(dim=-1, keepdim=True).clamp(min=_LEAST)
        values[..., part, :] = (made * (LARGEST / largest)).round_()
        scale[..., part, :] = largest / LARGEST
    return Int8Rows(values, scale, x.dtype)


def _parts(num_rows: int, *, entries: int = 1) -> Iterator[slice]:
    """Divide the rows of each entry evenly: CUDA multiplies no fewer than 17."""
    step = math.ceil(num_rows / math.ceil(entries * num_rows / _ROWS_AT_ONCE))
    return (slice(start, start + step) for start in range(0, num_rows, step))
