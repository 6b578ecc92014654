"""A ModelPatcher that applies LoRA to packed weights without touching their bytes.

ComfyUI's own patcher decodes nothing: it would add a LoRA to the bytes. Ours hands packed layers a
function that acts on the decoded weight, in all of ComfyUI's ways of loading (whole, low VRAM,
dynamic). It also keeps the weights in main memory where they are when a copy goes to the GPU:
unloading costs nothing, and models may share them.
"""

from __future__ import annotations

import collections
import functools
import uuid
from typing import Any

import comfy.model_management
import comfy.model_patcher
import comfy.utils
import torch
from torch import nn

from .layers import HostLinear

_DYNAMIC = "weight_lowvram_function"  # where the dynamic patcher puts a LoRA
_Kept = collections.namedtuple("_Kept", ["weight", "inplace_update"])


def make_patcher(model: nn.Module) -> Any:
    """Wrap a model on the CPU for ComfyUI's memory management of diffusion models."""
    load_device = comfy.model_management.get_torch_device()
    # Looked up at call time: with a GPU, ComfyUI swaps the class for its dynamic one.
    base = comfy.model_patcher.CoreModelPatcher
    if comfy.model_management.is_device_cpu(load_device):
        base = comfy.model_patcher.ModelPatcher  # the dynamic class would put itself aside there
    return _patcher_class(base)(model, load_device=load_device, offload_device=torch.device("cpu"))


def move_to_model(patcher: Any, model: nn.Module) -> Any:
    """Clone a patcher onto another model whose parameter names include the old one's.

    LoRA, model sampling, wrappers and options come along; what was loaded does not.
    """
    clone = patcher.clone(model_override=(model, ({}, {}, {}, set())))
    clone.size = 0  # to be measured anew
    clone.parent = (
        None  # a parent takes the clone's place when it is gone; this one is another model
    )
    clone.clone_base_uuid = uuid.uuid4()
    return clone


def resting_tensor(patcher: Any, name: str) -> torch.Tensor:
    """Give a parameter as it is in main memory, unpatched, whether the model is loaded or not."""
    kept = patcher.backup.get(name)
    tensor: torch.Tensor = (
        comfy.utils.get_attr(patcher.model, name) if kept is None else kept.weight
    )
    return tensor.data.to(patcher.offload_device)


@functools.cache
def _patcher_class(base: type) -> type:
    return type("MultiTalkPatcher", (_PackedWeights, base), {})


class _PackedWeights:
    """The overrides; mixed into whichever patcher class ComfyUI uses."""

    model: nn.Module
    patches: dict[str, Any]
    backup: dict[str, Any]
    weight_wrapper_patches: dict[str, Any]

    def patch_weight_to_device(
        self,
        key: str,
        device_to: torch.device | None = None,
        inplace_update: bool = False,
        return_weight: bool = False,
        force_cast: bool = False,
    ) -> Any:
        """Load one weight: a plain one patched as ComfyUI does, a packed one as it is."""
        packed = self._is_packed(key)
        if key in self.patches and not packed:
            return super().patch_weight_to_device(  # type: ignore[misc]
                key, device_to, inplace_update, return_weight, force_cast
            )
        weight = comfy.utils.get_attr(self.model, key)
        if return_weight or weight is None or device_to is None or weight.device == device_to:
            return weight
        if key not in self.backup:
            self.backup[key] = _Kept(weight, False)
        comfy.utils.set_attr_param(self.model, key, weight.to(device_to))
        return None

    def load(self, device_to: torch.device | None = None, *args: Any, **kwargs: Any) -> None:
        """Load as ComfyUI does, then give packed layers their LoRA functions."""
        super().load(device_to, *args, **kwargs)  # type: ignore[misc]
        self._bind_functions()
        self._move_loose_parameters(device_to)

    def partially_unload(self, *args: Any, **kwargs: Any) -> Any:
        """Free device memory as ComfyUI does; what was unloaded keeps its LoRA functions."""
        freed = super().partially_unload(*args, **kwargs)  # type: ignore[misc]
        self._bind_functions()
        return freed

    def unpatch_model(
        self, device_to: torch.device | None = None, unpatch_weights: bool = True
    ) -> None:
        """Restore the model; packed layers lose their LoRA functions with the other patches."""
        super().unpatch_model(device_to, unpatch_weights)  # type: ignore[misc]
        if unpatch_weights:
            for _, layer in self._packed_layers():
                layer.dense_functions = []

    def _bind_functions(self) -> None:
        for name, layer in self._packed_layers():
            key = f"{name}.weight"
            functions = list(self.weight_wrapper_patches.get(key, ()))
            if key in self.patches:
                functions.insert(0, comfy.model_patcher.LowVramPatch(key, self.patches))
            layer.dense_functions = functions
            layer.weight_function = []  # ComfyUI's, which would be given the bytes
            setattr(layer, _DYNAMIC, None)

    def _move_loose_parameters(self, device: torch.device | None) -> None:
        """Move parameters beside submodules (each block's modulation), which `load` may skip."""
        for module in self.model.modules():
            if any(True for _ in module.children()):
                for parameter in module.parameters(recurse=False):
                    parameter.data = parameter.data.to(device)

    def _packed_layers(self) -> list[tuple[str, HostLinear]]:
        return [
            (name, module)
            for name, module in self.model.named_modules()
            if isinstance(module, HostLinear) and module.is_packed
        ]

    def _is_packed(self, key: str) -> bool:
        owner, _, leaf = key.rpartition(".")
        module = self.model.get_submodule(owner)
        return leaf == "weight" and isinstance(module, HostLinear) and module.is_packed
