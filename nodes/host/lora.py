"""LoRA on a packed layer: ComfyUI's own arithmetic on the decoded weight."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import comfy.lora
import comfy.weight_adapter
import torch
from torch import Tensor


class LayerLora:
    """What ComfyUI's weight patches change in one layer.

    The factors stay beside the weight on its device as long as the weight does, and travel with it
    where it travels.
    """

    def __init__(self, key: str, patches: list[Any]) -> None:
        """Take the patches of the weight `key` as a ModelPatcher holds them."""
        self._key = key
        self._patches = patches
        self._kept: list[Any] | None = None
        self._device: torch.device | None = None

    def change(self, weight: Tensor, *, keep: bool) -> Tensor:
        """Give the changed weight.

        Args:
            weight: Decoded, float32, `(out, in)`; is written to.
            keep: Whether the weight stays on its device, and so shall the factors.
        """
        if not keep:
            self._kept = None
        elif self._kept is None or self._device != weight.device:
            self._kept, self._device = _moved(self._patches, weight.device), weight.device
        changed: Tensor = comfy.lora.calculate_weight(
            self._patches if self._kept is None else self._kept,
            weight,
            self._key,
            intermediate_dtype=weight.dtype,
        )
        return changed


def num_bytes(patches: list[Any]) -> int:
    """Give the size of the tensors in the patches of one weight."""
    sizes: list[int] = []

    def count(tensor: Tensor) -> Tensor:
        sizes.append(tensor.nbytes)
        return tensor

    _map_tensors(patches, count)
    return sum(sizes)


def _moved(patches: list[Any], device: torch.device) -> list[Any]:
    moved: list[Any] = _map_tensors(patches, lambda tensor: tensor.to(device))
    return moved


def _map_tensors(value: Any, change: Callable[[Tensor], Tensor]) -> Any:
    """Rebuild ComfyUI's nest of tuples, lists and adapters with other tensors."""
    if isinstance(value, Tensor):
        return change(value)
    if isinstance(value, (list, tuple)):
        return type(value)(_map_tensors(item, change) for item in value)
    if isinstance(value, comfy.weight_adapter.WeightAdapterBase):
        adapter = copy.copy(value)
        adapter.weights = _map_tensors(value.weights, change)
        return adapter
    return value
