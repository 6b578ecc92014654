"""Linear layers that hold GGUF bytes: packed at rest, decoded in forward.

The bytes live in a plain uint8 buffer named `weight` (no Tensor subclass, no false shape), the
logical shape on the layer, options on the load (`gguf_ops(...)`), never on a class. LoRA factors
stand beside the bytes and act on the decoded float32 weight before its one rounding.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from .dequant import PACKED_TYPES, dequantize
from .errors import GGUFError
from .types import GGML_TYPES, PLAIN_DTYPES, TYPES_BY_NAME

_NAMES = {dtype: name for name, dtype in PLAIN_DTYPES.items()}


@dataclass(frozen=True)
class GGUFOps:
    """Layer classes of one load, for models that are built as `ops.Linear(...)`.

    Attributes:
        dtype: Compute dtype of its layers; None follows each layer's input.
    """

    dtype: torch.dtype | None = None

    def Linear(  # noqa: N802  (named as torch.nn names it)
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> GGUFLinear:
        """Build an empty layer, with the arguments of `torch.nn.Linear`."""
        return GGUFLinear(in_features, out_features, bias, device, dtype, compute_dtype=self.dtype)


def gguf_ops(*, dtype: torch.dtype | None = None) -> GGUFOps:
    """Make the layer classes of one load.

    Args:
        dtype: What the layers compute in; None follows each layer's input.
    """
    return GGUFOps(dtype=dtype)


class WeightPatch(nn.Module):
    """A change of a layer's weight by a LoRA file: `scale * up @ down`, or `scale * delta`.

    The tensors keep the dtype of their file and follow the layer between devices; they are no
    part of its state dict.
    """

    def __init__(self, *factors: Tensor, scale: float) -> None:
        """Keep `(delta,)` of the weight's shape, or `(up, down)` as `(out, rank)`, `(rank, in)`."""
        super().__init__()
        self.scale = scale
        for name, factor in zip(("up", "down"), factors, strict=False):
            self.register_buffer(name, factor, persistent=False)

    def add_to(self, weight: Tensor) -> Tensor:
        """Add the change to a float32 weight `(out, in)`; returns a new tensor."""
        up, *down = (f.to(device=weight.device, dtype=torch.float32) for f in self.buffers())
        if down:
            return torch.addmm(weight, up, down[0], alpha=self.scale)
        return weight.add(up, alpha=self.scale)


class GGUFLinear(nn.Module):
    """`torch.nn.Linear` over a weight in any storage type, without gradients.

    Attributes:
        in_features: Columns of the logical weight.
        out_features: Rows of the logical weight.
        weight: Packed rows, uint8 `(out_features, row_bytes)`, or a plain tensor
            `(out_features, in_features)` of the stored dtype.
        bias: `(out_features,)` or None.
        compute_dtype: What forward computes in; None follows the input.
        patches: LoRA changes of the weight, in the order they were given.
    """

    weight: Tensor
    bias: Tensor | None

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        *,
        compute_dtype: torch.dtype | None = None,
    ) -> None:
        """Build the layer with zeros, to be filled by `store_weight` or `load_state_dict`."""
        super().__init__()
        self.in_features = in_features
        self.out_features = out_features
        self.compute_dtype = compute_dtype
        self._packed_type: str | None = None
        zeros = torch.zeros(out_features, in_features, device=device, dtype=dtype)
        self.register_buffer("weight", zeros)
        self.register_buffer("bias", zeros.new_zeros(out_features) if bias else None)
        self.patches = nn.ModuleList()

    @property
    def weight_type(self) -> str:
        """Storage type of the weight: a GGML type, or the name of a plain dtype."""
        return self._packed_type or _NAMES[self.weight.dtype]

    @property
    def is_packed(self) -> bool:
        """Whether the weight is held as packed bytes."""
        return self._packed_type is not None

    def store_weight(self, weight: Tensor, type: str) -> None:
        """Take over a weight as it was read.

        Args:
            weight: Packed rows `(out_features, row_bytes)` in uint8, or plain values
                `(out_features, in_features)` of any floating-point dtype.
            type: Its storage type in the file; every plain type means plain values.

        Raises:
            GGUFError: If the tensor is not of the layer's shape.
        """
        packed_type = type if type in PACKED_TYPES else None
        expected = self._stored_shape(packed_type)
        if tuple(weight.shape) != expected or weight.is_floating_point() == bool(packed_type):
            raise GGUFError(
                f"the {type} weight of a layer with {self.in_features} inputs and "
                f"{self.out_features} outputs needs the shape {expected}, not "
                f"{tuple(weight.shape)} in {weight.dtype}."
            )
        self._packed_type = packed_type
        self.weight = weight

    def dequantized_weight(
        self, dtype: torch.dtype, device: torch.device | str | None = None
    ) -> Tensor:
        """Decode the weight, with LoRA changes, in float32 and round it once.

        Args:
            dtype: What to round to.
            device: Where to decode; None means where the bytes are.

        Returns:
            The weight, `(out_features, in_features)`; may be the stored tensor itself.
        """
        stored = self.weight.to(device) if device is not None else self.weight
        decoded_dtype = torch.float32 if len(self.patches) else dtype
        if self._packed_type is None:
            weight = stored.to(decoded_dtype)
        else:
            shape = (self.out_features, self.in_features)
            weight = dequantize(stored, self._packed_type, shape, dtype=decoded_dtype)
        for patch in self.patches:
            assert isinstance(patch, WeightPatch)
            weight = patch.add_to(weight)
        return weight.to(dtype)

    def forward(self, x: Tensor) -> Tensor:
        """Apply the layer to `(..., in_features)`; the result has the input's dtype."""
        dtype = self.compute_dtype if self.is_packed and self.compute_dtype else x.dtype
        weight = self.dequantized_weight(dtype, x.device)
        bias = None if self.bias is None else self.bias.to(device=x.device, dtype=dtype)
        return functional.linear(x.to(dtype), weight, bias).to(x.dtype)

    def extra_repr(self) -> str:
        """Describe the layer in a printed model."""
        return (
            f"in_features={self.in_features}, out_features={self.out_features}, "
            f"bias={self.bias is not None}, weight_type={self.weight_type}"
        )

    def _stored_shape(self, packed_type: str | None) -> tuple[int, int]:
        if packed_type is None:
            return self.out_features, self.in_features
        _, _, block, block_bytes = TYPES_BY_NAME[packed_type]
        return self.out_features, self.in_features // block * block_bytes

    def _save_to_state_dict(
        self, destination: dict[str, Any], prefix: str, keep_vars: bool
    ) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        if self._packed_type is not None:
            type_id = TYPES_BY_NAME[self._packed_type].id
            destination[f"{prefix}weight_type"] = torch.tensor(type_id, dtype=torch.int32)

    def _load_from_state_dict(
        self,
        state_dict: Mapping[str, Any],
        prefix: str,
        local_metadata: dict[str, Any],
        strict: bool,
        missing_keys: list[str],
        unexpected_keys: list[str],
        error_msgs: list[str],
    ) -> None:
        type_key = f"{prefix}weight_type"
        incoming = state_dict.get(f"{prefix}weight")
        ggml_type = GGML_TYPES.get(int(state_dict[type_key])) if type_key in state_dict else None
        packed_type = ggml_type.name if ggml_type else None
        if type_key in state_dict and packed_type not in PACKED_TYPES:
            error_msgs.append(f"{type_key} is {int(state_dict[type_key])}, no packed GGML type.")
        elif incoming is not None and tuple(incoming.shape) == self._stored_shape(packed_type):
            # Make room of the incoming kind; any other shape torch reports as a mismatch.
            self._packed_type = packed_type
            self.weight = torch.empty_like(incoming, device=self.weight.device)
        super()._load_from_state_dict(
            state_dict, prefix, local_metadata, strict, missing_keys, unexpected_keys, error_msgs
        )
        if type_key in unexpected_keys:
            unexpected_keys.remove(type_key)
