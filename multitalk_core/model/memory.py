"""What stays the same through the steps of a segment, kept from its first use on.

The keys and values of text, photo and voices depend on the segment only. With the 14B model they
are 0.6 GB for each pass and would save 0.2 % of its time, so a memory has a limit, and what finds
no room in it is computed again. In small models and small videos they are a good part of all work.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import Protocol

from torch import Tensor

Make = Callable[[], tuple[Tensor, ...]]


class Recall(Protocol):
    """Gives the tensors of a name: those kept, or what `make` makes."""

    def __call__(self, name: str, make: Make) -> tuple[Tensor, ...]:
        """Give the tensors of `name` at this place."""
        ...


def compute(name: str, make: Make) -> tuple[Tensor, ...]:
    """Recall nothing: make the tensors anew."""
    return make()


class Memory:
    """Tensors by name and place, up to a number of bytes in all.

    Belongs to one segment and one order of passes; the owner drops it with them.
    """

    def __init__(self, *, max_bytes: int) -> None:
        """Start empty."""
        self._free = max_bytes
        self._kept: dict[Hashable, tuple[Tensor, ...]] = {}

    def at(self, *place: Hashable) -> Recall:
        """Give the recall of one place, such as a block and a part of the batch."""

        def recall(name: str, make: Make) -> tuple[Tensor, ...]:
            key = (name, *place)
            if key in self._kept:
                return self._kept[key]
            made = make()
            size = sum(tensor.nbytes for tensor in made)
            if size <= self._free:
                self._free -= size
                self._kept[key] = made
            return made

        return recall
