"""Plain torch layers, for models that are not quantised."""

from __future__ import annotations

import contextlib
from contextlib import AbstractContextManager
from typing import ClassVar

from torch import Tensor, nn
from torch.nn import functional

from ..protocols import Feed


class _CastingLinear(nn.Linear):
    def forward(self, input: Tensor) -> Tensor:
        bias = None if self.bias is None else self.bias.to(input.dtype)
        return functional.linear(input, self.weight.to(input.dtype), bias)


class TorchOps:
    """Layers that compute in the dtype of their input; an `Ops`."""

    Linear = _CastingLinear
    feed: ClassVar[Feed | None] = None

    @staticmethod
    def cache_decoded(layers: nn.Module) -> AbstractContextManager[None]:
        """Do nothing: the weights are used as they are."""
        return contextlib.nullcontext()
