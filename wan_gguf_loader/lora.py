"""LoRA files: read as the changes that they make, and applied to a loaded model.

A file is checked as a whole before anything changes. What it holds for other models than the
transformer is left out with a warning; what it holds for the transformer is read, or refused.
"""

from __future__ import annotations

import logging
import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from .changes import Change
from .errors import GGUFError
from .files import WeightsFile
from .lora_keys import LayerNames
from .lora_layer import LayerReader, LoraLayer
from .lora_settings import read_settings
from .names import first_names
from .ops import GGUFLinear

_log = logging.getLogger(__name__)

_PATCH = "patch_embedding"
_T2V_CHANNELS = 16


@dataclass(frozen=True, kw_only=True, slots=True)
class Lora:
    """What a file changes.

    Attributes:
        source: File name.
        changes: In the order of the file.
        left_out: Names of its tensors that belong to other models.
    """

    source: str
    changes: tuple[Change, ...]
    left_out: tuple[str, ...]

    @property
    def num_layers(self) -> int:
        """Number of layers that are changed."""
        return len({change.name.rpartition(".")[0] for change in self.changes})

    def report(self, strength: float) -> str:
        """Say in a line what is applied, and what is left out."""
        kinds = Counter(sorted(_described(change) for change in self.changes))
        listed = ", ".join(f"{kind}: {count}" for kind, count in kinds.most_common())
        text = f"{self.source}: {self.num_layers} layers at strength {strength:g} ({listed})"
        if not self.left_out:
            return text
        others = f"{len(self.left_out)} ({first_names(self.left_out)})"
        return f"{text}; tensors of other models, left out: {others}"


def _described(change: Change) -> str:
    if change.kind != "LoRA":
        return change.kind if change.magnitude is None else f"{change.kind} with DoRA"
    name = "LoRA" if change.magnitude is None else "DoRA"
    return f"{name} of rank {change.factors[1].shape[0]}"


def apply_lora(model: nn.Module, lora: Lora, strength: float) -> None:
    """Change a loaded model; several calls add up.

    A `GGUFLinear` keeps the change of its weight beside the stored one; every other tensor is
    changed in place.

    Args:
        model: The model for which the file was read.
        lora: The changes.
        strength: Factor on all of them; 0 changes nothing, 1 is as the file was trained.
    """
    for change in lora.changes if strength else ():
        path, _, leaf = change.name.rpartition(".")
        owner = model.get_submodule(path)
        if isinstance(owner, GGUFLinear) and leaf == "weight":
            owner.change_weight(change, strength)
            continue
        tensor: Tensor = getattr(owner, leaf)
        changed = change.apply(tensor.detach().to(torch.float32, copy=True), strength)
        changed = changed.to(tensor.dtype)
        if isinstance(tensor, nn.Parameter):
            changed = nn.Parameter(changed, requires_grad=tensor.requires_grad)
        setattr(owner, leaf, changed)


def read_lora(file: WeightsFile, model: nn.Module) -> Lora:
    """Read what a file changes in a model.

    Args:
        file: The LoRA file.
        model: Only its names and logical shapes are read.

    Raises:
        GGUFError: If tensors for this model match none of its layers, lack their other half, or
            have another shape or type.
    """
    shapes = _shapes(model)
    layers, left_out = _match(file, shapes)
    settings = read_settings(file)
    changes = [
        change
        for layer in layers.values()
        for change in LayerReader(file, layer, shapes, settings).changes()
    ]
    if left_out:
        _log.warning(
            "%s: %d of the %d tensors of this LoRA belong to other models than this transformer "
            "and are left out: %s",
            file.path.name, len(left_out), len(file.tensors), first_names(left_out),
        )  # fmt: skip
    return Lora(source=file.path.name, changes=tuple(changes), left_out=tuple(left_out))


def _shapes(model: nn.Module) -> dict[str, tuple[int, ...]]:
    """Name every tensor of a model with its logical shape."""
    shapes = {name: tuple(tensor.shape) for name, tensor in model.named_parameters()}
    shapes |= {name: tuple(tensor.shape) for name, tensor in model.named_buffers()}
    for path, layer in model.named_modules():
        if isinstance(layer, GGUFLinear):
            shapes[f"{path}.weight"] = (layer.out_features, layer.in_features)
    return shapes


def _match(
    file: WeightsFile, shapes: Mapping[str, tuple[int, ...]]
) -> tuple[dict[str, LoraLayer], list[str]]:
    """Group the file's tensors by the model's layers, and list those of other models."""
    names = LayerNames(shapes)
    layers: dict[str, LoraLayer] = {}
    unmatched: list[str] = []
    others: list[str] = []
    for key in file.tensors:
        place = names.find(key)
        if place.path is None or place.role is None:
            (unmatched if place.is_ours else others).append(key)
            continue
        roles = layers.setdefault(place.path, LoraLayer(place.path, place.stem)).roles
        if place.role in roles:
            raise GGUFError(
                f"{roles[place.role]!r} and {key!r} are the same part of one layer. Use a LoRA "
                "with one of the two.",
                path=file.path,
            )
        roles[place.role] = key
    if not layers:
        raise GGUFError(
            f"this is not a LoRA for this model: none of its {len(file.tensors)} tensors names a "
            f"layer with a LoRA key ({first_names([*unmatched, *others])}).",
            path=file.path,
        )
    if unmatched:
        raise GGUFError(
            f"{len(unmatched)} of the {len(file.tensors)} tensors of this LoRA match no layer of "
            f"the model, or are of no kind that is read: {first_names(unmatched)}. Use a LoRA made "
            "for this Wan model.",
            path=file.path,
        )
    return layers, [*others, *_other_patches(file, layers, shapes)]


def _other_patches(
    file: WeightsFile, layers: dict[str, LoraLayer], shapes: Mapping[str, tuple[int, ...]]
) -> list[str]:
    """Take out the patch embedding of a text-to-video model, which sees no photo."""
    ours = shapes.get(f"{_PATCH}.weight", ())
    roles = layers[_PATCH].roles if _PATCH in layers else {}
    key = roles.get("down", roles.get("weight"))
    if key is None or len(ours) < 2 or ours[1] == _T2V_CHANNELS:
        return []
    if math.prod(file.tensors[key].shape[1:]) != _T2V_CHANNELS * math.prod(ours[2:]):
        return []
    taken = [role for role in roles if role not in ("bias", "modulation")]
    return [roles.pop(role) for role in taken]
