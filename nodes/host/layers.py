"""Linear layers whose packed bytes take part in ComfyUI's memory management.

ComfyUI streams what is a Parameter of a module with `comfy_cast_weights`, so the bytes stand in
uint8 Parameters and arrive through `cast_bias_weight`. LoRA acts on the decoded weight: by
`loras` where the weight is packed, by ComfyUI's own ways where it is plain.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import comfy.ops
import torch
from torch import Tensor, nn

from ...wan_gguf_loader.dequant import dequantize
from ...wan_gguf_loader.ops import GGUFLinear, GGUFOps
from .lora import LayerLora


class HostLinear(GGUFLinear):
    """A `GGUFLinear` as ComfyUI's loaders and patchers expect a layer.

    What acts on the decoded weight `(out, in)` of a packed layer does so in float32, before the
    weight is rounded, in this order:

    Attributes:
        loras: LoRAs of the MODEL.
        hooked: LoRAs of the conditioning that is run now.
        dense_functions: Weight wrappers of other nodes.
    """

    comfy_cast_weights = True

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.weight_function: list[Callable[[Tensor], Tensor]] = []
        self.bias_function: list[Callable[[Tensor], Tensor]] = []
        self.loras: list[LayerLora] = []
        self.hooked: list[LayerLora] = []
        self.dense_functions: list[Callable[[Tensor], Tensor]] = []

    def forward(self, x: Tensor) -> Tensor:  # type: ignore[override]  # see `HostOps`
        """Apply the layer to `(..., in_features)` in the dtype of its input."""
        if (ready := self.held_for(x)) is not None:
            return self.multiply(x, *ready)
        weight, bias, stream = comfy.ops.cast_bias_weight(
            self,
            dtype=torch.uint8 if self.is_packed else x.dtype,
            device=x.device,
            bias_dtype=x.dtype,
            offloadable=True,
        )
        dense = self._decode(weight, x) if self.is_packed else weight
        rounded = self.rounded(dense, x)
        if self._holds:
            # What was cast lies in memory that ComfyUI gives to the next layer.
            rounded = _own(dense, self.weight) if rounded is weight else rounded
            bias = None if bias is None or self.bias is None else _own(bias, self.bias)
        ready = rounded, bias
        self._held = ready if self._holds else None
        result = self.multiply(x, *ready)
        comfy.ops.uncast_bias_weight(self, weight, bias, stream)
        return result

    def take_type(self, other: GGUFLinear) -> None:
        """Read the weight as `other` reads its own; the tensors are given apart."""
        self._packed_type = other._packed_type

    def _decode(self, stored: Tensor, x: Tensor) -> Tensor:
        loras = (*self.loras, *self.hooked)
        changed = bool(loras or self.dense_functions)
        dense = dequantize(
            stored,
            self.weight_type,
            (self.out_features, self.in_features),
            dtype=torch.float32 if changed else x.dtype,
        )
        for lora in loras:
            dense = lora.change(dense, keep=self._stays_on(x.device))
        for function in self.dense_functions:
            dense = function(dense)
        return dense.to(x.dtype)

    def _stays_on(self, device: torch.device) -> bool:
        """Tell whether the weight just used remains on the device until the next use."""
        # `_v_signature` is set by ComfyUI's dynamic memory while the weight has its place there.
        return self.weight.device == device or getattr(self, "_v_signature", None) is not None


@dataclass(frozen=True)
class HostOps(GGUFOps):
    """Layer classes for a model that lives in ComfyUI.

    Its layers round their input themselves: other nodes wrap a layer's `forward`, as bypass LoRAs
    do, and expect a tensor there.
    """

    layer = HostLinear
    feed = None


def adopt(model: nn.Module) -> None:
    """Turn the weights of a loaded model's layers into the Parameters ComfyUI moves and streams."""
    for layer in host_layers(model):
        for name in ("weight", "bias"):
            tensor = layer._buffers.pop(name, None)
            parameter = None if tensor is None else nn.Parameter(tensor, requires_grad=False)
            layer.register_parameter(name, parameter)


def _own(tensor: Tensor, stored: Tensor) -> Tensor:
    """Give a tensor that lasts: the stored one itself, else a copy."""
    return tensor if tensor.data_ptr() == stored.data_ptr() else tensor.clone()


def host_layers(model: nn.Module) -> Iterator[HostLinear]:
    """Give every `HostLinear` of a model."""
    return (module for module in model.modules() if isinstance(module, HostLinear))
