"""LoRA on a packed layer: ComfyUI's arithmetic on the decoded weight.

Plain LoRAs, however many, are added by one product; all else that ComfyUI knows (LoHa, LoKr, DoRA,
whole differences, parts of a weight ...) is left to ComfyUI, patch by patch.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import comfy.lora
import comfy.weight_adapter
import torch
from comfy.weight_adapter.lora import LoRAAdapter
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
        patches = self._patches if self._kept is None else self._kept
        factors = _plain_factors(patches, weight)
        if factors is not None:
            return weight.addmm_(*factors)
        changed: Tensor = comfy.lora.calculate_weight(
            patches,
            weight,
            self._key,
            intermediate_dtype=weight.dtype,
        )
        return changed


def _plain_factors(patches: list[Any], weight: Tensor) -> tuple[Tensor, Tensor] | None:
    """Give `(out, rank)` and `(rank, in)` whose product is the whole change; of plain LoRAs only.

    Where ComfyUI would pass over a LoRA that does not fit, and say so, it is left to do that.
    """
    ups, downs = [], []
    for strength, adapter, strength_model, offset, function in patches:
        if type(adapter) is not LoRAAdapter or strength_model != 1.0 or offset or function:
            return None
        up, down, alpha, *others = adapter.weights
        if any(other is not None for other in others):
            return None
        up, down = (part.to(weight.device, weight.dtype).flatten(1) for part in (up, down))
        rank = down.shape[0]
        if (up.shape, down.shape) != ((weight.shape[0], rank), (rank, weight.shape[1])):
            return None
        ups.append(up * (strength * (1.0 if alpha is None else alpha / rank)))
        downs.append(down)
    return (torch.cat(ups, dim=1), torch.cat(downs)) if ups else None


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
