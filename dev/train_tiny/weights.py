"""Writes the encoders' weights: float16, sorted names, head count in the metadata, atomically."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from safetensors.torch import save_file
from torch import Tensor


def save_weights(path: Path, weights: Mapping[str, Tensor], *, num_heads: int) -> None:
    """Write an encoder's weights; integers keep their type."""
    path.parent.mkdir(parents=True, exist_ok=True)
    stored = {
        name: (value.half() if value.is_floating_point() else value).contiguous()
        for name, value in sorted(weights.items())
    }
    draft = path.with_suffix(".part")
    # One key only: safetensors writes several in an order that changes from run to run.
    save_file(stored, draft, metadata={"num_heads": str(num_heads)})
    draft.replace(path)
