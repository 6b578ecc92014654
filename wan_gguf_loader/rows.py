"""Weights of one byte a value with a float32 scale a row: scaled fp8 and int8.

Files keep the scale as a tensor beside the weight. In memory each row carries its own, so that a
weight stays one tensor of packed bytes, like a GGUF one: the values, the scale, and zeros up to 16
bytes, which keeps rows aligned. `kernels/rows.py` decodes on CUDA with the same results.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor


class RowType(NamedTuple):
    """One packing; `id` marks it in a state dict, above every ggml id."""

    name: str
    id: int
    dtype: torch.dtype


ROW_TYPES: Mapping[str, RowType] = {
    t.name: t
    for t in (
        RowType("F8_E4M3_ROWS", 1001, torch.float8_e4m3fn),
        RowType("F8_E5M2_ROWS", 1002, torch.float8_e5m2),
        RowType("I8_ROWS", 1003, torch.int8),
    )
}
ROW_TYPE_OF: Mapping[torch.dtype, str] = {t.dtype: t.name for t in ROW_TYPES.values()}

TAIL_BYTES = 16
"""Bytes after the values of a row."""


def pack_rows(values: Tensor, scale: Tensor) -> Tensor:
    """Put the scale of each row behind its values.

    Args:
        values: `(rows, K)` in a dtype of `ROW_TYPE_OF`.
        scale: Factor of each row, `(rows,)`.

    Returns:
        uint8 `(rows, K + 16)`.
    """
    rows, row_len = values.shape
    packed = torch.zeros(rows, row_len + TAIL_BYTES, dtype=torch.uint8, device=values.device)
    packed[:, :row_len] = values.view(torch.uint8)
    packed[:, row_len : row_len + 4] = scale.float().reshape(-1, 1).contiguous().view(torch.uint8)
    return packed


def decode_rows(packed: Tensor, type: str) -> Tensor:
    """Decode packed rows to float32 `(rows, K)`."""
    row_len = packed.shape[-1] - TAIL_BYTES
    values = packed[:, :row_len].view(ROW_TYPES[type].dtype)
    scale = packed[:, row_len : row_len + 4].contiguous().view(torch.float32)
    return values.float() * scale
