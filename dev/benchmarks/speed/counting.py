"""Counts the decoded weights and the copies to the card of a step."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from ....wan_gguf_loader.ops import GGUFLinear, GGUFOps

_SMALL = 1 << 16
"""Copies of fewer bytes are not weights."""


class CountingLinear(GGUFLinear):
    """A GGUF layer that counts how often its packed weight is decoded."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.decoded = 0

    def dequantized_weight(
        self, dtype: torch.dtype, device: torch.device | str | None = None
    ) -> Tensor:
        """Count, then decode."""
        self.decoded += int(self.is_packed)
        return super().dequantized_weight(dtype, device)


@dataclass(frozen=True)
class CountingOps(GGUFOps):
    """Layer classes whose layers count."""

    layer = CountingLinear


def decodings(model: nn.Module) -> float:
    """Give the decodings per packed weight since the last call, on average."""
    layers = [one for one in model.modules() if isinstance(one, CountingLinear) and one.is_packed]
    total = sum(layer.decoded for layer in layers)
    for layer in layers:
        layer.decoded = 0
    return total / len(layers)


class Transfers(TorchDispatchMode):
    """Context that counts the `bytes` copied from main memory to a device."""

    def __init__(self) -> None:
        super().__init__()
        self.bytes = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        if func is torch.ops.aten.copy_.default:
            self._note(args[1], args[0])
        elif func is torch.ops.aten._to_copy.default:
            self._note(args[0], result)
        return result

    def _note(self, source: Tensor, target: Tensor) -> None:
        if source.device.type == "cpu" and target.device.type != "cpu" and source.nbytes > _SMALL:
            self.bytes += source.nbytes
