"""Bit fields of packed blocks."""

from __future__ import annotations

import torch
from torch import Tensor


def planes(q: Tensor, *, width: int, bits: int) -> Tensor:
    """Unpack the fields of bytes, lowest first.

    Args:
        q: Bytes, `(n, m)` uint8; each run of `width` bytes holds `8 / bits` runs of values.
        width: Bytes in one run; 1 interleaves the fields of each byte.
        bits: Bits of one field: 1, 2 or 4.

    Returns:
        Values, `(n, m * 8 / bits)` uint8.
    """
    q = q.reshape(len(q), -1, width)
    mask = (1 << bits) - 1
    return torch.stack([(q >> shift) & mask for shift in range(0, 8, bits)], dim=2).flatten(1)


def half(b: Tensor) -> Tensor:
    """Read little-endian float16 numbers, `(n, 2 k)` uint8 to `(n, k)` float32."""
    return words(b, torch.float16).float()


def words(b: Tensor, dtype: torch.dtype) -> Tensor:
    """Read little-endian numbers of `dtype`, `(n, size * k)` uint8 to `(n, k)`.

    Always copies: a field of a single block is contiguous as it lies, but at an offset that need
    not divide by the size of `dtype`.
    """
    return b.clone(memory_format=torch.contiguous_format).view(dtype)
