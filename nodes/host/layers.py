"""Linear layers whose packed bytes take part in ComfyUI's memory management.

ComfyUI streams what is a Parameter of a module with `comfy_cast_weights`, so the bytes stand in
uint8 Parameters and arrive through `cast_bias_weight`. LoRA acts on the decoded weight: by
`dense_functions` where the weight is packed, by ComfyUI's own ways where it is plain.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import comfy.ops
import torch
from torch import Tensor, nn
from torch.nn import functional

from ...wan_gguf_loader.dequant import dequantize
from ...wan_gguf_loader.ops import GGUFLinear


class HostLinear(GGUFLinear):
    """A `GGUFLinear` as ComfyUI's loaders and patchers expect a layer.

    Attributes:
        dense_functions: What is done to the decoded weight `(out, in)` of a packed layer, in
            float32, before it is rounded.
    """

    comfy_cast_weights = True

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.weight_function: list[Callable[[Tensor], Tensor]] = []
        self.bias_function: list[Callable[[Tensor], Tensor]] = []
        self.dense_functions: list[Callable[[Tensor], Tensor]] = []

    def forward(self, x: Tensor) -> Tensor:
        """Apply the layer to `(..., in_features)` in the dtype of its input."""
        weight, bias, stream = comfy.ops.cast_bias_weight(
            self,
            dtype=torch.uint8 if self.is_packed else x.dtype,
            device=x.device,
            bias_dtype=x.dtype,
            offloadable=True,
        )
        dense = self._decode(weight, x.dtype) if self.is_packed else weight
        result = functional.linear(x, dense, bias)
        comfy.ops.uncast_bias_weight(self, weight, bias, stream)
        return result

    def take_type(self, other: GGUFLinear) -> None:
        """Read the weight as `other` reads its own; the tensors are given apart."""
        self._packed_type = other._packed_type

    def _decode(self, stored: Tensor, dtype: torch.dtype) -> Tensor:
        decoded_dtype = torch.float32 if self.dense_functions else dtype
        shape = (self.out_features, self.in_features)
        dense = dequantize(stored, self.weight_type, shape, dtype=decoded_dtype)
        for change in self.dense_functions:
            dense = change(dense)
        return dense.to(dtype)


@dataclass(frozen=True)
class HostOps:
    """Layer classes for a model that lives in ComfyUI."""

    Linear = HostLinear


def adopt(model: nn.Module) -> None:
    """Turn the weights of a loaded model's layers into the Parameters ComfyUI moves and streams."""
    for layer in host_layers(model):
        for name in ("weight", "bias"):
            tensor = layer._buffers.pop(name, None)
            parameter = None if tensor is None else nn.Parameter(tensor, requires_grad=False)
            layer.register_parameter(name, parameter)


def host_layers(model: nn.Module) -> Iterator[HostLinear]:
    """Give every `HostLinear` of a model."""
    return (module for module in model.modules() if isinstance(module, HostLinear))
