"""Linear layers whose packed weights ComfyUI's memory management can move and stream.

ComfyUI streams the Parameters of a module that has `comfy_cast_weights`. So the packed bytes are
uint8 Parameters, and `cast_bias_weight` brings them to the device. LoRAs change the decoded weight:
of a packed layer through `HostLinear.loras`, of a plain layer through ComfyUI's own functions.
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
from .internals import is_resident
from .lora import LayerLora


class HostLinear(GGUFLinear):
    """A `GGUFLinear` with the attributes that ComfyUI's loaders and patchers need.

    The attributes below change the decoded weight `(out, in)` of a packed layer in this order, in
    float32, before it is rounded.

    Attributes:
        loras: LoRAs of the MODEL.
        hooked: LoRA hooks of the current conditioning.
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
        """Apply the layer to `(..., in_features)`, computing in the dtype of the input."""
        if (ready := self.cached_for(x)) is not None:
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
        if self._caches:
            # The cast tensors are in a buffer that ComfyUI reuses for the next layer.
            rounded = _own(dense, self.weight) if rounded is weight else rounded
            bias = None if bias is None or self.bias is None else _own(bias, self.bias)
        ready = rounded, bias
        self._cached = ready if self._caches else None
        result = self.multiply(x, *ready)
        comfy.ops.uncast_bias_weight(self, weight, bias, stream)
        return result

    def take_type(self, other: GGUFLinear) -> None:
        """Copy the quantisation type of `other`, but none of its tensors."""
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
        keep = self.weight.device == x.device or is_resident(self)
        for lora in loras:
            dense = lora.change(dense, keep=keep)
        for function in self.dense_functions:
            dense = function(dense)
        return dense.to(x.dtype)


@dataclass(frozen=True)
class HostOps(GGUFOps):
    """Layer classes of a model in ComfyUI.

    Each layer rounds its own input: nodes that wrap a layer's `forward`, such as bypass LoRAs, need
    a tensor there, not the packed form.
    """

    layer = HostLinear
    feed = None


def adopt(model: nn.Module) -> None:
    """Turn the weights of a loaded model's layers into Parameters, which ComfyUI can stream."""
    for layer in host_layers(model):
        for name in ("weight", "bias"):
            tensor = layer._buffers.pop(name, None)
            parameter = None if tensor is None else nn.Parameter(tensor, requires_grad=False)
            layer.register_parameter(name, parameter)


def _own(tensor: Tensor, stored: Tensor) -> Tensor:
    """Return the tensor if it shares the stored one's memory, otherwise a copy."""
    return tensor if tensor.data_ptr() == stored.data_ptr() else tensor.clone()


def host_layers(model: nn.Module) -> Iterator[HostLinear]:
    """Return every `HostLinear` of a model."""
    return (module for module in model.modules() if isinstance(module, HostLinear))
