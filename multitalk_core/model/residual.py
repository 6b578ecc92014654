"""The residual stream: video tokens and, in bfloat16, their rounding residual, as one value.

Each block adds its outputs to the tokens. bfloat16 keeps 8 bits of a sum; the residual keeps four
more, so that many small additions are not lost. Plain torch is the reference; on CUDA a Triton
kernel does the same in one pass over memory.

Letters: B batch, N tokens, D width.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .elementwise import kernels_for

RESIDUAL_SIZE = 0.25
"""Bytes of the residual for each byte of bfloat16 tokens."""
_ROWS_AT_ONCE = 2048
"""Tokens added at once without a kernel, because the float32 in between takes memory."""


@dataclass(frozen=True, slots=True, eq=False)
class Stream:
    """Video tokens with their rounding residual.

    Attributes:
        tokens: `(B, N, D)`.
        residual: The rounding residual of bfloat16 tokens, `(B, N, D / 2)` uint8, as `cut` gives
            it; `None` keeps none.
    """

    tokens: Tensor
    residual: Tensor | None = None

    def entries(self, part: slice) -> Stream:
        """Give some entries of the batch, as a view."""
        return Stream(self.tokens[part], None if self.residual is None else self.residual[part])

    def add_(self, y: Tensor, *, gate: Tensor | float = 1.0) -> None:
        """Add `y * gate`, in place.

        Args:
            y: `(B, N, D)`.
            gate: A number, also as a 0-d CPU tensor, or `(B, 1, D)` float32.
        """
        x = self.tokens
        # A host may put tokens of any layout between blocks; the kernels count along memory.
        kernels = kernels_for(x) if x.is_contiguous() and y.is_contiguous() else None
        if self.residual is not None:
            _add_with_residual(x, y, gate=gate, residual=self.residual, kernels=kernels)
        elif not isinstance(gate, Tensor) or gate.ndim == 0:
            # Reading the number while compiling would compile anew for every other number.
            if torch.compiler.is_compiling():
                x.add_(y * gate)
            else:
                x.add_(y, alpha=float(gate))
        elif kernels is not None:
            kernels.add_gated(x, y, gate=gate)
        else:
            x.copy_(torch.addcmul(x, y, gate))


def empty_residual(x: Tensor) -> Tensor | None:
    """Give the residual of tokens that are not rounded yet: zeros, or `None` unless bfloat16."""
    if x.dtype != torch.bfloat16:
        return None
    return torch.zeros(*x.shape[:-1], x.shape[-1] // 2, dtype=torch.uint8, device=x.device)


def _add_with_residual(
    x: Tensor, y: Tensor, *, gate: Tensor | float, residual: Tensor, kernels: Any | None
) -> None:
    if kernels is not None and y.dtype == x.dtype:  # a host's layer may give another
        number = not isinstance(gate, Tensor) or gate.ndim == 0
        kernels.add_with_residual(x, y, gate=float(gate) if number else gate, residual=residual)
        return
    num_rows = x.shape[1]
    step = num_rows if torch.compiler.is_compiling() else _ROWS_AT_ONCE
    for start in range(0, num_rows, step):
        rows = slice(start, start + step)
        whole = joined(x[:, rows], residual[:, rows]) + y[:, rows].float() * gate
        x[:, rows], residual[:, rows] = cut(whole)


def cut(value: Tensor) -> tuple[Tensor, Tensor]:
    """Round float32 to bfloat16 and keep four bits of what that leaves over.

    Args:
        value: `(..., D)`, D even.

    Returns:
        The rounded tensor, and its residual `(..., D / 2)` in uint8: for each number the signed
        16ths of its last place, two numbers in a byte, the first in the low bits.
    """
    bits = value.view(torch.int32)
    top = (bits + 0x8000) >> 16
    left = (((bits - (top << 16) + 0x800) >> 12).clamp_(max=7) & 15).to(torch.uint8)
    return top.to(torch.int16).view(torch.bfloat16), left[..., ::2] | (left[..., 1::2] << 4)


def joined(x: Tensor, residual: Tensor) -> Tensor:
    """Give the float32 that `cut` rounded to `x` and `residual`, to the 16th of a last place."""
    left = torch.stack((residual & 15, residual >> 4), dim=-1).flatten(-2).to(torch.int32)
    bits = (x.view(torch.int16).to(torch.int32) << 16) + (((left ^ 8) - 8) << 12)
    return bits.view(torch.float32)
