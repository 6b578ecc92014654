"""Norms, modulation, rotation and GELU of the transformer: plain torch, and Triton on CUDA.

The plain formulas are the reference; `kernels/elementwise.py` does the same in one pass over
memory, with all arithmetic in float32 and one rounding at the end. It is used for CUDA tensors
where Triton is installed, no gradient is recorded, and torch is not compiling (its compiler fuses
the plain formulas by itself).

Letters: B batch, N tokens, D width, A heads.
"""

from __future__ import annotations

import functools
import importlib.util
from typing import Any

import torch
import torch.nn.functional as functional
from torch import Tensor

from ..protocols import Feed, Packed
from .lrope import Rotation, rotate


def normalize(
    x: Tensor, *, gain: Tensor, shift: Tensor, eps: float, feed: Feed | None = None
) -> Tensor | Packed:
    """Return `layer_norm(x) * gain + shift` in the dtype of `x`.

    Args:
        x: Tokens, `(B, N, D)`.
        gain: `(D,)` for all, or `(B, 1, D)` for each entry of the batch.
        shift: Likewise.
        eps: Of the norm.
        feed: If given, and it takes `x`, returns the packed form instead of a tensor.
    """
    if feed is not None and feed.takes(x):
        return feed.normalize(x, gain=gain, shift=shift, eps=eps)
    if (kernels := kernels_for(x)) is not None:
        result: Tensor = kernels.normalize(x, gain=gain, shift=shift, eps=eps)
        return result
    width = x.shape[-1:]
    if gain.ndim == 1:
        return functional.layer_norm(x, width, gain.to(x.dtype), shift.to(x.dtype), eps)
    return torch.addcmul(shift, functional.layer_norm(x, width, eps=eps), gain).to(x.dtype)


def rms_norm(x: Tensor, *, weight: Tensor, eps: float) -> Tensor:
    """Divide tokens `(B, N, D)` by their root mean square, then multiply by `weight` `(D,)`."""
    if (kernels := kernels_for(x)) is not None:
        result: Tensor = kernels.rms_norm(x, weight=weight, eps=eps)
        return result
    return functional.rms_norm(x, weight.shape, weight.to(x.dtype), eps)


def rms_norm_rotated(
    x: Tensor, *, weight: Tensor, eps: float, num_heads: int, rotation: Rotation
) -> Tensor:
    """Normalise `(B, N, D)` as `rms_norm` does and rotate the heads: `(B, N, A, D / A)`."""
    split = (num_heads, -1)
    if (kernels := kernels_for(x)) is not None:
        cos, sin = rotation
        result = kernels.rms_norm(x, weight=weight, eps=eps, cos=cos, sin=sin)
        return torch.unflatten(result, -1, split)
    return rotate(torch.unflatten(rms_norm(x, weight=weight, eps=eps), -1, split), rotation)


def turn(x_BNAD: Tensor, rotation: Rotation) -> Tensor:  # noqa: N803
    """Rotate queries or keys as `lrope.rotate` does."""
    if (kernels := kernels_for(x_BNAD)) is not None:
        cos, sin = rotation
        result: Tensor = kernels.rms_norm(x_BNAD.flatten(2), weight=None, eps=0.0, cos=cos, sin=sin)
        return result.view_as(x_BNAD)
    return rotate(x_BNAD, rotation)


def gelu(x: Tensor, *, feed: Feed | None = None) -> Tensor | Packed:
    """Return the tanh approximation of GELU; if `feed` takes `x`, in packed form."""
    if feed is not None and feed.takes(x):
        return feed.gelu(x)
    return functional.gelu(x, approximate="tanh")


def gelu_(x: Tensor, *, feed: Feed | None = None) -> Tensor | Packed:
    """Compute `gelu`, but overwrite `x` if the result is a tensor; has no gradient."""
    if feed is not None and feed.takes(x):
        return feed.gelu(x)
    result: Tensor = torch.ops.aten.gelu_(x, approximate="tanh")
    return result


def kernels_for(x: Tensor) -> Any | None:
    """Return the Triton kernels if they can be used for `x`; they record no gradient."""
    if x.device.type != "cuda" or torch.is_grad_enabled() or torch.compiler.is_compiling():
        return None
    return _triton_kernels()


@functools.cache
def _triton_kernels() -> Any | None:
    if importlib.util.find_spec("triton") is None:
        return None
    from .kernels import elementwise  # Triton may be missing

    return elementwise
