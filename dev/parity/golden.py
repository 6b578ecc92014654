"""Golden files: tensors recorded from the official code, and the rows of a comparison with them.

Every comparer in this package offers `compare(path) -> list[Row]`; `parity.driver` picks one by the
file's `what`.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import safe_open
from torch import Tensor

_RECORDED = ("in.", "mid.", "out.", "v.", "const.")
"""Prefixes of recorded tensors; every other name belongs to a weight."""


class Row(NamedTuple):
    """One compared group of tensors."""

    group: str
    error: float
    tolerance: float
    note: str = ""

    @property
    def ok(self) -> bool:
        """Whether the largest error is within the tolerance; never for NaN."""
        return self.error <= self.tolerance


class GoldenFile:
    """A safetensors file of recorded tensors with a JSON `config` in its metadata.

    Attributes:
        path: The file.
        config: Sizes and settings of the recorded run.
        tensors: Name to tensor; half and eight-bit floats are float32 here (their storage
            is lossless).
    """

    def __init__(self, path: Path) -> None:
        self.path = Path(path)
        with safe_open(self.path, framework="pt") as file:
            metadata = file.metadata() or {}
            self.tensors = {name: _upcast(file.get_tensor(name)) for name in file.keys()}  # noqa: SIM118
        if "config" not in metadata:
            raise ValueError(
                f"{self.path.name} is not a golden file: its metadata has no 'config'. "
                "Give a file recorded from the official code."
            )
        self.config: dict[str, Any] = json.loads(metadata["config"])

    @property
    def what(self) -> str:
        """Kind of the file, such as `lrope` or `dit_tiny_single.safetensors`."""
        return str(self.config["what"])

    def get(self, name: str) -> Tensor:
        """Give a tensor by name; a missing one is a `KeyError` that names the file."""
        if name not in self.tensors:
            raise KeyError(f"{self.path.name} has no tensor {name!r}")
        return self.tensors[name]

    def weights(self, prefix: str = "") -> dict[str, Tensor]:
        """Give the weights whose names start with `prefix`, without it.

        They come from the file that `weights_file` names, looked up next to this one.
        """
        source = str(self.config.get("weights_file", "self"))
        if source not in ("self", self.path.name):
            return GoldenFile(self.path.parent / source).weights(prefix)
        return {
            name.removeprefix(prefix): tensor
            for name, tensor in self.tensors.items()
            if name.startswith(prefix) and (prefix or not name.startswith(_RECORDED))
        }


def largest_error(ours: Tensor, theirs: Tensor) -> float:
    """Give the largest absolute difference: infinite for other shapes, NaN if either holds NaN."""
    if ours.shape != theirs.shape:
        return float("inf")
    if not theirs.numel():
        return 0.0
    return float((ours.detach().double() - theirs.double()).abs().max())


def row(group: str, ours: Tensor, theirs: Tensor, *, tolerance: float, note: str = "") -> Row:
    """Compare two tensors as one row."""
    if ours.shape != theirs.shape:
        note = f"shape {tuple(ours.shape)}, recorded {tuple(theirs.shape)}"
    return Row(group, largest_error(ours, theirs), tolerance, note)


def require_rows(rows: list[Row], file: GoldenFile) -> list[Row]:
    """Return the rows; raise an error if there are none."""
    if not rows:
        raise ValueError(f"{file.path.name} holds nothing to compare for its kind ({file.what}).")
    return rows


def _upcast(tensor: Tensor) -> Tensor:
    small = tensor.is_floating_point() and tensor.dtype != torch.float64
    return tensor.float() if small else tensor
