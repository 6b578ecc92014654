"""LoRA on a packed layer: ComfyUI's arithmetic on the decoded weight.

All plain LoRAs of a layer are added by one matrix product. ComfyUI applies the other kinds (LoHa,
LoKr, DoRA, full differences, slices of a weight ...), one patch at a time.
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
    """The weight patches of one layer.

    While the weight is resident on a device, the factors are cached there too. If the weight is
    streamed, the factors are moved at each use.
    """

    def __init__(self, key: str, patches: list[Any]) -> None:
        """Store the patches of the weight `key`, in the form of `ModelPatcher.patches`."""
        self._key = key
        self._patches = patches
        self._cached: list[Any] | None = None
        self._device: torch.device | None = None

    def change(self, weight: Tensor, *, keep: bool) -> Tensor:
        """Return the patched weight.

        Args:
            weight: The decoded weight, float32, `(out, in)`; overwritten.
            keep: Cache the factors on the weight's device.
        """
        if not keep:
            self._cached = None
        elif self._cached is None or self._device != weight.device:
            self._cached, self._device = _moved(self._patches, weight.device), weight.device
        patches = self._patches if self._cached is None else self._cached
        factors = _plain_factors(patches, weight)
        if factors is not None:
            return weight.addmm_(*factors)
        changed: Tensor = comfy.lora.calculate_weight(
            patches, weight, self._key, intermediate_dtype=weight.dtype
        )
        return changed


def _plain_factors(patches: list[Any], weight: Tensor) -> tuple[Tensor, Tensor] | None:
    """Return `(out, rank)` and `(rank, in)`, whose product is the sum of all patches.

    Returns `None` if a patch is not a plain LoRA, or does not fit the weight: ComfyUI then logs
    an error and skips it.
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
    """Return the bytes of all tensors in the patches of one weight."""
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
    """Copy nested tuples, lists and adapters, with `change` applied to each tensor."""
    if isinstance(value, Tensor):
        return change(value)
    if isinstance(value, (list, tuple)):
        return type(value)(_map_tensors(item, change) for item in value)
    if isinstance(value, comfy.weight_adapter.WeightAdapterBase):
        adapter = copy.copy(value)
        adapter.weights = _map_tensors(value.weights, change)
        return adapter
    return value
