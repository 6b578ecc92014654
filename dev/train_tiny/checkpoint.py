"""Checkpoints of an interrupted training, at most 14 MB, so that they can travel between machines.

Weights, their running average and Adam's second moments are stored as float16. The first moments
are not stored: ten steps restore them. Parameters that are not trained are left out.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save
from torch import Tensor

MAX_BYTES = 14_000_000


def save_checkpoint(path: Path, tensors: Mapping[str, Tensor], *, notes: Mapping[str, str]) -> None:
    """Write tensors as float16, atomically.

    Args:
        path: File to write.
        tensors: State of the training.
        notes: Counters, as text.

    Raises:
        ValueError: If the file would be too large.
    """
    stored = {name: value.detach().half().contiguous().cpu() for name, value in tensors.items()}
    content = save(stored, metadata=dict(notes))
    if len(content) > MAX_BYTES:
        raise ValueError(
            f"{path.name} would take {len(content):,} bytes; at most {MAX_BYTES:,} can travel. "
            "Train a narrower model."
        )
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_suffix(".part")
    draft.write_bytes(content)
    draft.replace(path)


def load_checkpoint(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Read tensors (float32) and notes.

    Raises:
        FileNotFoundError: If it does not exist.
    """
    with safe_open(path, framework="pt") as file:
        names = list(file.keys())
        tensors = {name: file.get_tensor(name).to(torch.float32) for name in names}
        return tensors, dict(file.metadata() or {})
