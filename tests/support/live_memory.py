"""Counts the bytes of live tensors on any device, the meta device included."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class LiveMemory(TorchDispatchMode):
    """While entered, tracks the tensors that operations create until they are freed.

    Attributes:
        peak: Most bytes alive at once; may be set back to 0.
    """

    def __init__(self) -> None:
        super().__init__()
        self.peak = 0
        self._alive: dict[int, tuple[StorageWeakRef, int]] = {}
        self._total = 0  # of `_alive`, some of which may be freed

    def __torch_dispatch__(
        self, func: Any, types: Sequence[type], args: Any = (), kwargs: Any = None
    ) -> Any:
        """Run an operation and count its new tensors; views of older ones count nothing."""
        for tensor in tree_leaves((args, kwargs)):
            if isinstance(tensor, torch.Tensor):
                self._add(tensor.untyped_storage(), size=0)
        output = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(output):
            if isinstance(tensor, torch.Tensor):
                self._add(tensor.untyped_storage(), size=tensor.untyped_storage().nbytes())
        if self._total > self.peak:
            self._drop_freed()
            self.peak = max(self.peak, self._total)
        return output

    def _add(self, storage: torch.UntypedStorage, *, size: int) -> None:
        if storage._cdata not in self._alive:
            self._alive[storage._cdata] = (StorageWeakRef(storage), size)
            self._total += size

    def _drop_freed(self) -> None:
        self._alive = {key: one for key, one in self._alive.items() if not one[0].expired()}
        self._total = sum(size for _, size in self._alive.values())
