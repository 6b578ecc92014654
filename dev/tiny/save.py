"""Writes safetensors files whose bytes depend only on the weights, atomically."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor


def save_weights(
    path: Path,
    weights: Mapping[str, Tensor],
    *,
    dtype: torch.dtype = torch.float16,
    num_heads: int | None = None,
) -> None:
    """Write weights in the order of their names.

    Args:
        path: The file; its folder is created, an existing file is replaced.
        weights: Names to tensors.
        dtype: Type of the floating-point tensors; integers keep theirs.
        num_heads: Head count of an encoder, for the metadata.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    stored = {
        name: (value.to(dtype) if value.is_floating_point() else value).contiguous()
        for name, value in sorted(weights.items())
    }
    # One key only: safetensors writes several in an order that changes from run to run.
    metadata = {"format": "pt"} if num_heads is None else {"num_heads": str(num_heads)}
    draft = path.with_suffix(".part")
    save_file(stored, draft, metadata=metadata)
    draft.replace(path)
