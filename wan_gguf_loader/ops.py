"""Linear layers over GGUF bytes: stored packed, decoded in forward.

The bytes are a plain uint8 buffer named `weight` (no Tensor subclass, no false shape); the layer
knows the logical shape; options belong to one load (`GGUFOps(...)`), never to a class. Changes by
LoRA files are kept beside the bytes and are applied to the decoded weight.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from .changes import Change, FullRank, LowRank, kept_changes
from .dequant import BLOCK_TYPES, PACKED_TYPES, dequantize
from .errors import GGUFError
from .int8 import Int8Feed, Int8Rows, int8_linear, quantize_rows, takes
from .rows import ROW_TYPES, TAIL_BYTES
from .types import PLAIN_DTYPES, TYPES_BY_NAME

Precision = Literal["exact", "int8"]

_Ready = tuple[Tensor | Int8Rows, Tensor | None]
"""Weight and bias in the form that the matrix product takes."""

_NAMES = {dtype: name for name, dtype in PLAIN_DTYPES.items()}
_IDS = {name: TYPES_BY_NAME[name].id for name in BLOCK_TYPES} | {
    name: row.id for name, row in ROW_TYPES.items()
}


class GGUFLinear(nn.Module):
    """`torch.nn.Linear` over a weight in any storage type, without gradients.

    Attributes:
        in_features: Columns of the logical weight.
        out_features: Rows of the logical weight.
        weight: Packed rows, uint8 `(out_features, row_bytes)`, or a plain tensor
            `(out_features, in_features)` of the stored dtype.
        bias: `(out_features,)` or None.
        precision: How forward multiplies; `"int8"` applies to inputs of many rows.
        changes: `LowRank` and `FullRank` changes of the weight, in order; None without any.
    """

    weight: Tensor
    bias: Tensor | None
    changes: nn.ModuleList | None

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        *,
        precision: Precision = "exact",
    ) -> None:
        """Build the layer with zeros; `store_weight` or `load_state_dict` fills it."""
        super().__init__()
        self.in_features = in_features
        self.out_features = out_features
        self.precision = precision
        self._packed_type: str | None = None
        zeros = torch.zeros(out_features, in_features, device=device, dtype=dtype)
        self.register_buffer("weight", zeros)
        self.register_buffer("bias", zeros.new_zeros(out_features) if bias else None)
        self.changes = None
        self._caches = False
        self._cached: _Ready | None = None

    @property
    def weight_type(self) -> str:
        """Storage type of the weight: a GGML type, or the name of a plain dtype."""
        return self._packed_type or _NAMES[self.weight.dtype]

    @property
    def is_packed(self) -> bool:
        """Whether the weight is stored as packed bytes."""
        return self._packed_type is not None

    def store_weight(self, weight: Tensor, type: str) -> None:
        """Store a weight of a storage type as it was read, without a copy.

        It is packed rows `(out_features, row_bytes)` in uint8, or plain values
        `(out_features, in_features)` of any floating-point dtype.

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

    def change_weight(self, change: Change, strength: float = 1.0) -> None:
        """Add a change of the weight; the stored weight is not modified.

        Args:
            change: Its factors are matrices that fit the weight.
            strength: Factor on it.
        """
        self.changes = nn.ModuleList(kept_changes(self._changes(), change, strength))

    def _changes(self) -> list[LowRank | FullRank]:
        changes = [] if self.changes is None else list(self.changes)
        return cast("list[LowRank | FullRank]", changes)

    def dequantized_weight(
        self, dtype: torch.dtype, device: torch.device | str | None = None
    ) -> Tensor:
        """Decode the weight and add its changes.

        Without changes every value is rounded once, from float32.

        Args:
            dtype: What to round to.
            device: Where to decode; None means where the bytes are.

        Returns:
            The weight, `(out_features, in_features)`; may be the stored tensor itself.
        """
        stored = self.weight.to(device) if device is not None else self.weight
        changes = self._changes()
        low_rank = all(isinstance(change, LowRank) for change in changes)
        decoded_dtype = dtype if low_rank else torch.float32
        if self._packed_type is None:
            weight = stored.to(decoded_dtype)
            if weight is self.weight and changes:
                weight = weight.clone()
        else:
            shape = (self.out_features, self.in_features)
            weight = dequantize(stored, self._packed_type, shape, dtype=decoded_dtype)
        for change in changes:
            weight = change.add_to(weight)
        return weight.to(dtype)

    def cache_decoded(self, *, enabled: bool) -> None:
        """Cache the decoded weight from the next `forward` on, or drop it and stop caching."""
        self._caches, self._cached = enabled, None

    def forward(self, x: Tensor | Int8Rows) -> Tensor:
        """Apply the layer to `(..., in_features)`; the result has the input's dtype.

        An int8 layer also takes rows that `GGUFOps.feed` has quantised.
        """
        ready = self.cached_for(x)
        if ready is None:
            weight = self.dequantized_weight(x.dtype, x.device)
            bias = None if self.bias is None else self.bias.to(device=x.device, dtype=x.dtype)
            ready = self.rounded(weight, x), bias
        if self._caches:
            self._cached = ready
        return self.multiply(x, *ready)

    def cached_for(self, x: Tensor | Int8Rows) -> _Ready | None:
        """Give the cached weight and bias if their form fits `x`, else None."""
        if self._cached is None or isinstance(self._cached[0], Int8Rows) != self._in_int8(x):
            return None
        return self._cached

    def rounded(self, weight: Tensor, x: Tensor | Int8Rows) -> Tensor | Int8Rows:
        """Quantise a decoded weight if the product with `x` is in int8."""
        return quantize_rows(weight) if self._in_int8(x) else weight

    def multiply(
        self, x: Tensor | Int8Rows, weight: Tensor | Int8Rows, bias: Tensor | None
    ) -> Tensor:
        """Apply the layer with a weight from `rounded`."""
        if isinstance(weight, Int8Rows):
            return int8_linear(x if isinstance(x, Int8Rows) else quantize_rows(x), weight, bias)
        assert isinstance(x, Tensor)
        return functional.linear(x, weight, bias)

    def _in_int8(self, x: Tensor | Int8Rows) -> bool:
        if isinstance(x, Int8Rows):
            return True
        return self.precision == "int8" and takes(x) and self.out_features % 8 == 0

    def extra_repr(self) -> str:
        """Describe the layer in a printed model."""
        return (
            f"in_features={self.in_features}, out_features={self.out_features}, "
            f"bias={self.bias is not None}, weight_type={self.weight_type}"
        )

    def _stored_shape(self, packed_type: str | None) -> tuple[int, int]:
        if packed_type is None:
            return self.out_features, self.in_features
        if packed_type in ROW_TYPES:
            return self.out_features, self.in_features + TAIL_BYTES
        _, _, block, block_bytes = TYPES_BY_NAME[packed_type]
        return self.out_features, self.in_features // block * block_bytes

    def _save_to_state_dict(
        self, destination: dict[str, Any], prefix: str, keep_vars: bool
    ) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        if self._packed_type is not None:
            type_id = _IDS[self._packed_type]
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
        type_id = int(state_dict[type_key]) if type_key in state_dict else None
        packed_type = next((name for name, id in _IDS.items() if id == type_id), None)
        if type_id is not None and packed_type is None:
            error_msgs.append(f"{type_key} is {type_id}, no packed type.")
        elif incoming is not None and tuple(incoming.shape) == self._stored_shape(packed_type):
            # Allocate the incoming type; torch reports any other shape as a mismatch.
            self._packed_type = packed_type
            self.weight = torch.empty_like(incoming, device=self.weight.device)
        super()._load_from_state_dict(
            state_dict, prefix, local_metadata, strict, missing_keys, unexpected_keys, error_msgs
        )
        if type_key in unexpected_keys:
            unexpected_keys.remove(type_key)


@dataclass(frozen=True)
class GGUFOps:
    """Layer classes of one load, for models built with `ops.Linear(...)`.

    Attributes:
        precision: `"exact"`, or `"int8"`, which multiplies inputs of many rows in int8: faster, and
            less exact; see `int8.py`.
        layer: The class of its layers.
    """

    layer: ClassVar[type[GGUFLinear]] = GGUFLinear
    precision: Precision = "exact"

    def Linear(  # noqa: N802  (named as torch.nn names it)
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> GGUFLinear:
        """Build an empty layer, with the arguments of `torch.nn.Linear`."""
        return self.layer(in_features, out_features, bias, device, dtype, precision=self.precision)

    @property
    def feed(self) -> Int8Feed | None:
        """Give the maker of int8 inputs; None if the layers compute exactly."""
        return Int8Feed() if self.precision == "int8" else None

    @staticmethod
    @contextlib.contextmanager
    def cache_decoded(layers: nn.Module) -> Iterator[None]:
        """Cache the decoded weights of all `GGUFLinear` inside `layers` for the context."""
        linears = [module for module in layers.modules() if isinstance(module, GGUFLinear)]
        for layer in linears:
            layer.cache_decoded(enabled=True)
        try:
            yield
        finally:
            for layer in linears:
                layer.cache_decoded(enabled=False)
