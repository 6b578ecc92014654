"""LoRA files on a MODEL: what the command applies, as weight patches of ComfyUI.

So ComfyUI's memory management, clones and other LoRA nodes treat them as their own. ComfyUI's
adapters carry plain LoRAs and differences. The other kinds keep our arithmetic: ComfyUI's DoRA
differs from the one that was trained (`wan_gguf_loader/changes.py`).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from comfy.weight_adapter import LoRAAdapter, WeightAdapterBase
from torch import Tensor

from ...multitalk_core.files.identify import FileKind, identify, require
from ...wan_gguf_loader.changes import Change
from ...wan_gguf_loader.files import open_weights
from ...wan_gguf_loader.lora import Lora, read_lora
from .model import NET, transformer_of


def load_lora(model: Any, path: Path, *, strength: float) -> tuple[Any, str]:
    """Return a MODEL with the changes of a LoRA file, and a line that says what they are.

    Args:
        model: A MODEL of this pack; it is not changed.
        path: The file.
        strength: Factor on the whole file.

    Raises:
        InputError: If another loader made the MODEL.
        WeightsError: If the file is not a LoRA.
        GGUFError: If the file cannot be read, or does not fit the MODEL.
    """
    net = transformer_of(model)
    with open_weights(path) as file:
        require(
            identify(file.shapes, file.metadata),
            FileKind.LORA,
            source=path.name,
            place="Load LoRA (Wan2.1)",
        )
        lora = read_lora(file, net)
    changed = model.clone()
    for patches in _patches(lora) if strength else ():
        changed.add_patches(patches, strength)
    return changed, lora.report(strength)


def _patches(lora: Lora) -> list[dict[str, Any]]:
    """Give the changes as patches by weight; several of one weight come in several dicts."""
    groups: list[dict[str, Any]] = []
    for change in lora.changes:
        key = f"{NET}.{change.name}"
        group = next((group for group in groups if key not in group), None)
        if group is None:
            groups.append(group := {})
        group[key] = _patch(change)
    return groups


def _patch(change: Change) -> Any:
    if change.is_low_rank:
        up, down = change.factors
        alpha = change.scale * down.shape[0]
        return LoRAAdapter(set(), (up, down, alpha, None, None, None))
    if change.kind == "difference" and change.magnitude is None and change.scale == 1:
        return ("diff", change.factors)
    weights = (change.kind, change.factors, change.scale, change.magnitude)
    return ChangeAdapter(set(), weights)


class ChangeAdapter(WeightAdapterBase):
    """A change of a weight with the arithmetic of `Change`.

    ComfyUI copies an adapter from `loaded_keys` and `weights`, and moves the tensors of the latter.
    """

    name = "multitalk"

    def __init__(self, loaded_keys: set[str], weights: Any) -> None:
        self.loaded_keys = loaded_keys
        self.weights = weights

    def calculate_weight(
        self,
        weight: Tensor,
        key: str,
        strength: float,
        *args: Any,
        **kwargs: Any,
    ) -> Tensor:
        """Return the changed weight; the weight given may be overwritten."""
        kind, factors, scale, magnitude = self.weights
        change = Change(name=key, kind=kind, factors=factors, scale=scale, magnitude=magnitude)
        return change.apply(weight.to(torch.float32), strength).to(weight.dtype)
