"""Norms, modulation, rotation and gates of the transformer: plain torch, and Triton on CUDA.

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

_ROWS_AT_ONCE = 2048
"""So many tokens are added at once where no kernel does it: what lies in between is float32."""


def normalize(
    x: Tensor, *, gain: Tensor, shift: Tensor, eps: float, feed: Feed | None = None
) -> Tensor | Packed:
    """Give `layer_norm(x) * gain + shift` in the dtype of `x`.

    Args:
        x: Tokens, `(B, N, D)`.
        gain: `(D,)` for all, or `(B, 1, D)` for each entry of the batch.
        shift: Likewise.
        eps: Of the norm.
        feed: If given, and it takes `x`, returns the packed form instead of a tensor.
    """
    if feed is not None and feed.takes(x):
        return feed.normalize(x, gain=gain, shift=shift, eps=eps)
    if (kernels := _kernels(x)) is not None:
        result: Tensor = kernels.normalize(x, gain=gain, shift=shift, eps=eps)
        return result
    width = x.shape[-1:]
    if gain.ndim == 1:
        return functional.layer_norm(x, width, gain.to(x.dtype), shift.to(x.dtype), eps)
    return torch.addcmul(shift, functional.layer_norm(x, width, eps=eps), gain).to(x.dtype)


def rms_norm(x: Tensor, *, weight: Tensor, eps: float) -> Tensor:
    """Divide tokens `(B, N, D)` by their root mean square, then multiply by `weight` `(D,)`."""
    if (kernels := _kernels(x)) is not None:
        result: Tensor = kernels.rms_norm(x, weight=weight, eps=eps)
        return result
    return functional.rms_norm(x, weight.shape, weight.to(x.dtype), eps)


def rms_norm_rotated(
    x: Tensor, *, weight: Tensor, eps: float, num_heads: int, rotation: Rotation
) -> Tensor:
    """Normalise tokens as `rms_norm` does, cut them into heads and turn these by their places.

    Args:
        x: Queries or keys, `(B, N, D)`.
        weight: `(D,)`.
        eps: Of the norm.
        num_heads: A.
        rotation: Of N positions, for all of the batch or for each.

    Returns:
        `(B, N, A, D / A)`.
    """
    split = (num_heads, -1)
    if (kernels := _kernels(x)) is not None:
        cos, sin = rotation
        result = kernels.rms_norm(x, weight=weight, eps=eps, cos=cos, sin=sin)
        return torch.unflatten(result, -1, split)
    return rotate(torch.unflatten(rms_norm(x, weight=weight, eps=eps), -1, split), rotation)


def turn(x_BNAD: Tensor, rotation: Rotation) -> Tensor:  # noqa: N803
    """Turn queries or keys as `lrope.rotate` does."""
    if (kernels := _kernels(x_BNAD)) is not None:
        cos, sin = rotation
        result: Tensor = kernels.rms_norm(x_BNAD.flatten(2), weight=None, eps=0.0, cos=cos, sin=sin)
        return result.view_as(x_BNAD)
    return rotate(x_BNAD, rotation)


def add(x: Tensor, y: Tensor, *, gate: Tensor | float = 1.0, rest: Tensor | None = None) -> Tensor:
    """Give `x + y * gate`; where no gradient is recorded, `x` is overwritten with it.

    Args:
        x: Tokens, `(B, N, D)`.
        y: What is added, likewise.
        gate: A number, also as a tensor `()` in main memory, or `(B, 1, D)` float32.
        rest: What `x`, in bfloat16, was rounded off, as `cut` gives it; is overwritten too.
    """
    if torch.is_grad_enabled():
        return (x + y * gate).to(x.dtype)
    # A host may put tokens of any layout between blocks; the kernels count along memory.
    kernels = _kernels(x) if x.is_contiguous() and y.is_contiguous() else None
    if rest is not None:
        return _add_with_rest(x, y, gate=gate, rest=rest, kernels=kernels)
    if not isinstance(gate, Tensor) or gate.ndim == 0:
        # Torch's compiler must not read the number, or it would compile anew for another.
        compiling = torch.compiler.is_compiling()
        return x.add_(y * gate) if compiling else x.add_(y, alpha=float(gate))
    if kernels is not None:
        kernels.add_gated(x, y, gate=gate)
        return x
    return x.copy_(torch.addcmul(x, y, gate))


def _add_with_rest(
    x: Tensor, y: Tensor, *, gate: Tensor | float, rest: Tensor, kernels: Any | None
) -> Tensor:
    if kernels is not None and y.dtype == x.dtype:  # a host's layer may give another
        number = not isinstance(gate, Tensor) or gate.ndim == 0
        kernels.add_with_rest(x, y, gate=float(gate) if number else gate, rest=rest)
        return x
    num_rows = x.shape[1]
    step = num_rows if torch.compiler.is_compiling() else _ROWS_AT_ONCE
    for start in range(0, num_rows, step):
        rows = slice(start, start + step)
        whole = joined(x[:, rows], rest[:, rows]) + y[:, rows].float() * gate
        x[:, rows], rest[:, rows] = cut(whole)
    return x


def cut(value: Tensor) -> tuple[Tensor, Tensor]:
    """Round float32 to bfloat16 and keep four bits of what that leaves over.

    Args:
        value: `(..., D)`, D even.

    Returns:
        The rounded tensor, and its rest `(..., D / 2)` in uint8: of each number a signed 16th of
        the last place, two in a byte, the first of them low.
    """
    bits = value.view(torch.int32)
    top = (bits + 0x8000) >> 16
    left = (((bits - (top << 16) + 0x800) >> 12).clamp_(max=7) & 15).to(torch.uint8)
    return top.to(torch.int16).view(torch.bfloat16), left[..., ::2] | (left[..., 1::2] << 4)


def joined(x: Tensor, rest: Tensor) -> Tensor:
    """Give the float32 that `cut` rounded to `x` and `rest`, to the 16th of a last place."""
    left = torch.stack((rest & 15, rest >> 4), dim=-1).flatten(-2).to(torch.int32)
    bits = (x.view(torch.int16).to(torch.int32) << 16) + (((left ^ 8) - 8) << 12)
    return bits.view(torch.float32)


def gelu(x: Tensor, *, feed: Feed | None = None) -> Tensor | Packed:
    """Give the tanh approximation of GELU; where no gradient is recorded, `x` becomes it.

    If `feed` is given, and takes `x`, returns the packed form and leaves `x` as it is.
    """
    if feed is not None and feed.takes(x):
        return feed.gelu(x)
    if torch.is_grad_enabled():
        return functional.gelu(x, approximate="tanh")
    result: Tensor = torch.ops.aten.gelu_(x, approximate="tanh")
    return result


def _kernels(x: Tensor) -> Any | None:
    """Give the Triton kernels, if they can and may be used for `x`."""
    if x.device.type != "cuda" or torch.is_grad_enabled() or torch.compiler.is_compiling():
        return None
    return _triton_kernels()


@functools.cache
def _triton_kernels() -> Any | None:
    if importlib.util.find_spec("triton") is None:
        return None
    from .kernels import elementwise  # Triton may be missing

    return elementwise
