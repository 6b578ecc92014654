"""A ModelPatcher that applies LoRA to packed weights without changing their bytes.

ComfyUI's own patcher does not decode weights, so it would add a LoRA to the packed bytes. This one
gives the LoRAs to the packed layers, which apply them to the decoded weight. It does so in each of
ComfyUI's loading modes (full, low VRAM, dynamic), for LoRAs of the MODEL and of a conditioning.
The weights in main memory stay there when they are copied to the GPU: unloading costs nothing, and
models can share them.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import comfy.hooks
import comfy.model_management
import comfy.model_patcher
import comfy.utils
import torch
from torch import nn

from ...multitalk_core.errors import InputError
from .internals import (
    Backup,
    LoadList,
    change_class,
    mark_loaded,
    remove_patches,
    separate,
    set_factory,
)
from .layers import HostLinear
from .lora import LayerLora, num_bytes

Resting = Callable[[str], torch.Tensor]
"""Returns the unpatched parameter in main memory, whether its model is loaded or not."""


def make_patcher(model: nn.Module, *, disable_dynamic: bool = False) -> Any:
    """Wrap a model on the CPU for ComfyUI's memory management of diffusion models.

    The model's method `twin` makes a second model around the same tensors.
    """
    load_device = comfy.model_management.get_torch_device()
    base = comfy.model_patcher.ModelPatcher
    # On the CPU the constructor of the dynamic class returns an object of another class.
    if not disable_dynamic and not comfy.model_management.is_device_cpu(load_device):
        # Looked up at call time: on a GPU, ComfyUI replaces this class by the dynamic one.
        base = comfy.model_patcher.CoreModelPatcher
    patcher = _patcher_class(base)(
        model, load_device=load_device, offload_device=torch.device("cpu")
    )
    _set_factory(patcher)
    return patcher


def move_to_model(patcher: Any, model: nn.Module) -> Any:
    """Clone a patcher onto another model whose parameter names include the old one's.

    LoRAs, model sampling, wrappers and options are copied; the loaded weights are not.
    """
    clone = patcher.clone(model_override=(model, ({}, {}, {}, set())))
    separate(clone)
    _set_factory(clone)
    return clone


def resting(model: nn.Module, backup: dict[str, Any]) -> Resting:
    """Return a function that reads a model's parameters as they are without patches.

    `backup` has the weights that its patcher restores when it unloads the model.
    """

    def tensor(name: str) -> torch.Tensor:
        kept = backup.get(name)
        weight: torch.Tensor = comfy.utils.get_attr(model, name) if kept is None else kept.weight
        return weight.data.to("cpu")

    return tensor


def _set_factory(patcher: Any) -> None:
    set_factory(patcher, _make_twin, patcher.model, patcher.backup)


def _make_twin(model: Any, backup: dict[str, Any], *, disable_dynamic: bool = False) -> Any:
    twin = model.twin(resting(model, backup))
    return make_patcher(twin, disable_dynamic=disable_dynamic)


def _is_model(patch: Any) -> bool:
    """Return whether a patch is the difference to another model's weight."""
    return isinstance(patch, tuple) and isinstance(patch[0], str) and patch[0] == "model_as_lora"


@functools.cache
def _patcher_class(base: type) -> type:
    return type("MultiTalkPatcher", (_PackedWeights, base), {})


class _PackedWeights(LoadList):
    """The overrides, as a mixin for the patcher class that ComfyUI uses."""

    model: nn.Module
    size: int
    patches: dict[str, Any]
    backup: dict[str, Any]
    weight_wrapper_patches: dict[str, Any]
    cached_hook_patches: dict[Any, dict[str, Any]]
    hook_mode: Any
    is_dynamic: Callable[[], bool]

    def clone(self, *args: Any, **kwargs: Any) -> Any:
        """Clone as ComfyUI does; without dynamic VRAM it makes a plain `ModelPatcher`."""
        clone: Any = super().clone(*args, **kwargs)  # type: ignore[misc]
        if not isinstance(clone, _PackedWeights):
            change_class(clone, _patcher_class(clone.__class__))
        clone.size = self.size
        return clone

    def model_size(self) -> int:
        """Return the bytes of the weights and of the LoRA factors of packed layers."""
        size: int = super().model_size()  # type: ignore[misc]
        return size + sum(self._extra_bytes(name) for name, _ in self._packed_layers())

    def patch_weight_to_device(
        self,
        key: str,
        device_to: torch.device | None = None,
        inplace_update: bool = False,
        return_weight: bool = False,
        force_cast: bool = False,
    ) -> Any:
        """Load one weight: a plain one patched by ComfyUI, a packed one unchanged."""
        if key in self.patches and self._packed(key) is None:
            return super().patch_weight_to_device(  # type: ignore[misc]
                key, device_to, inplace_update, return_weight, force_cast
            )
        weight = comfy.utils.get_attr(self.model, key)
        if return_weight or weight is None or device_to is None or weight.device == device_to:
            return weight
        if key not in self.backup:
            self.backup[key] = Backup(weight, inplace_update=False)
        comfy.utils.set_attr_param(self.model, key, weight.to(device_to))
        return None

    def load(self, device_to: torch.device | None = None, *args: Any, **kwargs: Any) -> None:
        """Load as ComfyUI does, then the modules that it skips; give packed layers their LoRAs."""
        super().load(device_to, *args, **kwargs)  # type: ignore[misc]
        self._load_unstreamed(device_to)
        self._bind()

    def partially_unload(self, *args: Any, **kwargs: Any) -> Any:
        """Free device memory as ComfyUI does; unloaded layers keep their LoRAs."""
        freed = super().partially_unload(*args, **kwargs)  # type: ignore[misc]
        self._bind()
        return freed

    def unpatch_model(
        self, device_to: torch.device | None = None, unpatch_weights: bool = True
    ) -> None:
        """Restore the model as ComfyUI does; also remove the LoRAs of packed layers."""
        super().unpatch_model(device_to, unpatch_weights)  # type: ignore[misc]
        if unpatch_weights:
            for _, layer in self._packed_layers():
                layer.loras, layer.dense_functions = [], []

    def patch_hook_weight_to_device(
        self, hooks: Any, combined_patches: dict[str, Any], key: str, *args: Any, **kwargs: Any
    ) -> None:
        """Apply the LoRA hooks of a conditioning to one weight.

        Raises:
            InputError: If the hook is another model, which quantised weights cannot take.
        """
        layer = self._packed(key)
        if layer is None or self.is_dynamic():
            super().patch_hook_weight_to_device(  # type: ignore[misc]
                hooks, combined_patches, key, *args, **kwargs
            )
        elif key in combined_patches:
            if any(_is_model(patch) for _, patch, *_ in combined_patches[key]):
                raise InputError(
                    "Create Hook Model as LoRA cannot change a quantised MODEL. Load the base from "
                    "safetensors, or give the difference as a LoRA with Create Hook LoRA."
                )
            layer.hooked = [LayerLora(key, combined_patches[key])]
            if self.hook_mode == comfy.hooks.EnumHookMode.MaxSpeed:
                self.cached_hook_patches.setdefault(hooks, {})[key] = layer.hooked

    def patch_cached_hook_weights(
        self, cached_weights: dict[str, Any], key: str, *args: Any, **kwargs: Any
    ) -> None:
        """Apply LoRA hooks that are cached since an earlier run of the conditioning."""
        layer = self._packed(key)
        if layer is None:
            super().patch_cached_hook_weights(  # type: ignore[misc]
                cached_weights, key, *args, **kwargs
            )
        else:
            layer.hooked = cached_weights[key]

    def unpatch_hooks(self, whitelist_keys_set: set[str] | None = None) -> None:
        """Remove the LoRA hooks from the named weights, or from all."""
        super().unpatch_hooks(whitelist_keys_set)  # type: ignore[misc]
        for name, layer in self._packed_layers():
            if not whitelist_keys_set or f"{name}.weight" in whitelist_keys_set:
                layer.hooked = []

    def get_key_patches(self, filter_prefix: str | None = None) -> Any:
        """Return the weights and patches, as nodes that merge models read them.

        Raises:
            InputError: If a merging node reads quantised weights.
        """
        if filter_prefix is not None:
            self._require_plain("merged into another", "Merge the files before they are quantised")
        return super().get_key_patches(filter_prefix)  # type: ignore[misc]

    def state_dict_for_saving(self, *args: Any, **kwargs: Any) -> Any:
        """Return the weights to save.

        Raises:
            InputError: If they are quantised.
        """
        self._require_plain("saved", "Keep its file, and the LoRAs as files")
        return super().state_dict_for_saving(*args, **kwargs)  # type: ignore[misc]

    def _load_unstreamed(self, device: torch.device | None) -> None:
        """Load and patch the modules that ComfyUI does not stream: norms, modulation ..."""
        for name, module in self.model.named_modules():
            if hasattr(module, "comfy_cast_weights"):
                continue
            own = [f"{name}.{leaf}" for leaf, _ in module.named_parameters(recurse=False)]
            for key in own:
                # The dynamic patcher has moved some of them but patched none.
                if key not in self.backup or (self.is_dynamic() and key in self.patches):
                    self.patch_weight_to_device(key, device)
            if own:
                mark_loaded(module)

    def _bind(self) -> None:
        for name, layer in self._packed_layers():
            key = f"{name}.weight"
            layer.loras = [LayerLora(key, self.patches[key])] if key in self.patches else []
            layer.dense_functions = list(self.weight_wrapper_patches.get(key, ()))
            remove_patches(layer)  # ComfyUI would call these with the packed bytes

    def _require_plain(self, done: str, advice: str) -> None:
        if self._packed_layers():
            raise InputError(f"A quantised MODEL cannot be {done}. {advice}.")

    def _extra_bytes(self, name: str) -> int:
        """Return the bytes of the LoRA factors of a packed layer."""
        key = f"{name}.weight"
        if key not in self.patches or self._packed(key) is None:
            return 0
        return num_bytes(self.patches[key])

    def _packed_layers(self) -> list[tuple[str, HostLinear]]:
        return [
            (name, module)
            for name, module in self.model.named_modules()
            if isinstance(module, HostLinear) and module.is_packed
        ]

    def _packed(self, key: str) -> HostLinear | None:
        """Return the packed layer whose weight has this key."""
        owner, _, leaf = key.rpartition(".")
        module = self.model.get_submodule(owner)
        if leaf == "weight" and isinstance(module, HostLinear) and module.is_packed:
            return module
        return None
