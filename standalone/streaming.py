"""Block swap: a transformer larger than the card, two of its blocks there at a time.

All tensors of a block (packed bytes, norms, biases, LoRA factors) lie in one page-locked stretch of
main memory, so that one copy brings a block to the card. There two slots take turns: while a block
computes out of one, a copy stream fills the other with the next block; after the last block that is
the first one, for the next forward pass. Nothing is allocated per block and the host never waits.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import logging
import weakref
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

_ALIGNMENT = 256
"""Bytes; what CUDA's allocator gives, so that kernels find the alignment they know."""

_log = logging.getLogger(__name__)


def stream_blocks(model: nn.Module, blocks: nn.ModuleList, device: torch.device) -> BlockStream:
    """Keep the weights of a model's blocks in main memory and lend them to the device in turn.

    Args:
        model: What the blocks belong to; its other parts move to the device.
        blocks: Its equal layers, called in order.
        device: Where it computes.

    Returns:
        The stream; it lives as long as the blocks.
    """
    inside = set(blocks.modules())
    moved: dict[Tensor, Tensor] = {}  # a tensor in two places, such as an embedding, stays one
    for place in _places(model):
        if place.owner not in inside:
            if place.tensor not in moved:
                moved[place.tensor] = place.like(place.tensor.to(device))
            place.put(moved[place.tensor])
    return BlockStream(list(blocks), device)


class BlockStream:
    """Lends blocks their weights on the device, each for the time of its forward pass.

    Attributes:
        copies: Blocks brought to the device so far; one for each block and forward pass.
        stream: What copies; `None` on a device without streams, where each copy is waited for.
    """

    def __init__(self, blocks: Sequence[nn.Module], device: torch.device) -> None:
        """Gather each block's weights in main memory and hook the blocks."""
        self.copies = 0
        self.stream = _new_stream(device)
        self._cargoes = [_Cargo(block, self.stream) for block in blocks]
        largest = max((len(cargo.bytes) for cargo in self._cargoes), default=0)
        self._slots = [_Slot(largest, device, self.stream) for _ in range(2)]
        self._views = [[cargo.views(slot.bytes) for cargo in self._cargoes] for slot in self._slots]
        self._coming: _Stay | None = None
        self._lent: _Stay | None = None
        self._hooks: list[RemovableHandle] = []
        for index, block in enumerate(blocks):
            before = functools.partial(self._hand_over, index)
            self._hooks.append(block.register_forward_pre_hook(before))
            self._hooks.append(block.register_forward_hook(self._take_back, always_call=True))

    def close(self) -> None:
        """End the lending; the blocks keep their weights in main memory."""
        self._take_back()
        for hook in self._hooks:
            hook.remove()

    def _hand_over(self, index: int, block: nn.Module, args: Any) -> None:
        self._take_back()  # after Ctrl-C in a block, for which torch calls no hook
        stay = self._coming
        if stay is None or stay.block != index:  # the first pass, or the last one ended midway
            stay = self._fetch(index, slot=0)
        self._slots[stay.slot].wait()
        self._cargoes[index].put(self._views[stay.slot][index])
        self._lent = stay
        self._coming = self._fetch((index + 1) % len(self._cargoes), slot=1 - stay.slot)

    def _take_back(self, *_: Any) -> None:
        if self._lent is not None:
            self._slots[self._lent.slot].release()
            self._cargoes[self._lent.block].put_masters()
            self._lent = None

    def _fetch(self, index: int, *, slot: int) -> _Stay:
        self._slots[slot].fill(self._cargoes[index].bytes)
        self.copies += 1
        return _Stay(index, slot)


class _Stay(NamedTuple):
    """Which block is in which slot."""

    block: int
    slot: int


class _Place(NamedTuple):
    """Where in a module a parameter or a buffer stands."""

    owner: nn.Module
    name: str
    tensor: Tensor

    def like(self, tensor: Tensor) -> Tensor:
        is_parameter = isinstance(self.tensor, nn.Parameter)
        return nn.Parameter(tensor, requires_grad=False) if is_parameter else tensor

    def put(self, tensor: Tensor) -> None:
        setattr(self.owner, self.name, tensor)


class _Cargo:
    """The weights of one block, side by side in main memory.

    Attributes:
        bytes: All of them, uint8, page-locked where the device is a CUDA card.
    """

    def __init__(self, block: nn.Module, stream: torch.cuda.Stream | None) -> None:
        self._places = list(_places(block))
        sizes = (-(-place.tensor.nbytes // _ALIGNMENT) * _ALIGNMENT for place in self._places)
        self._offsets = [0, *itertools.accumulate(sizes)]
        self.bytes = torch.empty(self._offsets[-1], dtype=torch.uint8)
        self._masters = self.views(self.bytes)
        for place, master in zip(self._places, self._masters, strict=True):
            master.copy_(place.tensor.detach())
        self.put_masters()
        self._places = [
            place._replace(tensor=master)
            for place, master in zip(self._places, self._masters, strict=True)
        ]
        if stream is not None:
            _page_lock(self.bytes, stream)

    def views(self, slab: Tensor) -> list[Tensor]:
        """Give every tensor of the block as a view of a slab that holds its bytes."""
        views = []
        for place, offset in zip(self._places, self._offsets, strict=False):
            tensor = place.tensor
            part = slab[offset : offset + tensor.nbytes]
            views.append(place.like(part.view(tensor.dtype).view(tensor.shape)))
        return views

    def put(self, tensors: Iterable[Tensor]) -> None:
        """Let the block compute with these tensors."""
        for place, tensor in zip(self._places, tensors, strict=True):
            place.put(tensor)

    def put_masters(self) -> None:
        """Let the block have its weights in main memory."""
        self.put(self._masters)


class _Slot:
    """Room for one block on the device, and who may touch it when.

    Attributes:
        bytes: The room, uint8.
    """

    def __init__(self, size: int, device: torch.device, stream: torch.cuda.Stream | None) -> None:
        self.bytes = torch.empty(size, dtype=torch.uint8, device=device)
        self._stream = stream
        if stream is not None:
            self.bytes.record_stream(stream)  # not to be given away while a copy is under way
            self._filled = torch.cuda.Event()  # type: ignore[no-untyped-call]
            self._free = torch.cuda.Event()  # type: ignore[no-untyped-call]
            self.release()

    def fill(self, source: Tensor) -> None:
        """Copy a block in, after the work of the one that was there."""
        target = self.bytes[: len(source)]
        if self._stream is None:
            target.copy_(source)
            return
        self._stream.wait_event(self._free)
        with torch.cuda.stream(self._stream):
            target.copy_(source, non_blocking=True)
        self._filled.record(self._stream)

    def wait(self) -> None:
        """Let the work that follows wait for the copy."""
        if self._stream is not None:
            torch.cuda.current_stream(self.bytes.device).wait_event(self._filled)

    def release(self) -> None:
        """Let the next copy wait for the work so far."""
        if self._stream is not None:
            self._free.record(torch.cuda.current_stream(self.bytes.device))


def _new_stream(device: torch.device) -> torch.cuda.Stream | None:
    if device.type != "cuda":
        return None
    return torch.cuda.Stream(device)  # type: ignore[no-untyped-call]


def _page_lock(memory: Tensor, stream: torch.cuda.Stream) -> None:
    """Register memory with CUDA, until it is freed, so that copies need not wait for the host.

    `pin_memory` would round each block up to a power of two: 22 GB become 43.
    """
    address = memory.data_ptr()
    runtime = torch.cuda.cudart()  # type: ignore[no-untyped-call]
    if int(runtime.cudaHostRegister(address, memory.nbytes, 0)) == 0:
        weakref.finalize(memory, _unlock, address, stream).atexit = False
        return
    with contextlib.suppress(RuntimeError):
        torch.zeros(1, device=stream.device)  # raises the error that CUDA still keeps
    _log.warning(
        "%.1f GB of main memory could not be page-locked; streaming is slower.", memory.nbytes / 1e9
    )


def _unlock(address: int, stream: torch.cuda.Stream) -> None:
    stream.synchronize()
    torch.cuda.cudart().cudaHostUnregister(address)  # type: ignore[no-untyped-call]


def _places(model: nn.Module) -> Iterator[_Place]:
    for owner in model.modules():
        tensors = itertools.chain(
            owner.named_parameters(recurse=False), owner.named_buffers(recurse=False)
        )
        yield from [_Place(owner, name, tensor) for name, tensor in tensors]
