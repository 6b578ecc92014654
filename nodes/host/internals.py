"""The internals of ComfyUI that this pack relies on: no interface of ComfyUI covers them.

Each has a test in `tests/host/inside/test_internals.py`, which fails when ComfyUI changes it.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable
from typing import Any, NamedTuple

import comfy.model_base
import torch
from torch import nn


class Backup(NamedTuple):
    """An entry of `ModelPatcher.backup`: the weight that unloading the model restores."""

    weight: torch.Tensor
    inplace_update: bool


class LoadList:
    """Mixin of a `ModelPatcher` whose modules need device memory besides their own weights."""

    def _extra_bytes(self, name: str) -> int:
        raise NotImplementedError

    def _load_list(self, *args: Any, **kwargs: Any) -> list[tuple[Any, ...]]:
        """List the modules to load; each entry ends with size, name, module and parameters."""
        entries = super()._load_list(*args, **kwargs)  # type: ignore[misc]
        return [
            (*order, size + self._extra_bytes(name), name, module, parameters)
            for *order, size, name, module, parameters in entries
        ]


def init_wan(model: Any, config: Any, net: nn.Module) -> None:
    """Construct a `WAN21` around `net`, past its own constructor, which fixes the network."""
    super(comfy.model_base.WAN21, model).__init__(
        config,
        comfy.model_base.ModelType.FLOW,
        device=torch.device("cpu"),
        unet_model=lambda **_: net,
    )
    model.image_to_video = True


def change_class(patcher: Any, kind: type) -> None:
    """Make a patcher an instance of a subclass of its class."""
    patcher.__class__ = kind


def separate(clone: Any) -> None:
    """Stop ComfyUI from taking a clone that has another model for the patcher it came from."""
    clone.size = 0  # measured again when it is next needed
    clone.parent = None
    clone.clone_base_uuid = uuid.uuid4()


def set_factory(patcher: Any, make: Callable[..., Any], *arguments: Any) -> None:
    """Set how ComfyUI makes a second model: for compiling, hooks and more than one GPU."""
    patcher.cached_patcher_init = (make, arguments)


def mark_loaded(module: Any) -> None:
    """Mark a module as loaded and patched, so that ComfyUI does not stream its weights."""
    module.comfy_patched_weights = True


def remove_patches(layer: Any) -> None:
    """Remove the LoRA functions that the patchers put on a layer's weight."""
    layer.weight_function = []
    layer.weight_lowvram_function = None


def is_resident(layer: nn.Module) -> bool:
    """Return whether dynamic VRAM keeps the layer's weight on the device until the next use."""
    return getattr(layer, "_v_signature", None) is not None
