"""Block swap: the blocks of a transformer in main memory, two of them on the card at a time.

All tensors of a block (packed bytes, norms, biases, LoRA factors) lie in one page-locked buffer, so
that one copy brings a block to the card. The card has two slots: while a block computes from one, a
copy stream fills the other with the next block; after the last block comes the first one, for the
next forward pass. Nothing is allocated per block, and the host never waits.
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
"""Alignment of tensors, in bytes, as CUDA's allocator gives it; kernels rely on it."""

_log = logging.getLogger(__name__)


def stream_blocks(model: nn.Module, blocks: nn.ModuleList, device: torch.device) -> BlockStream:
    """Keep the weights of a model's blocks in main memory and stream them to the device.

    Args:
        model: The whole model; its other parts move to the device.
        blocks: Its blocks, called in order.
        device: Where the model computes.

    Returns:
        The stream; it lives as long as the blocks.
    """
    inside = set(blocks.modules())
    moved: dict[Tensor, Tensor] = {}  # a shared tensor, such as an embedding, stays shared
    for place in _places(model):
        if place.owner not in inside:
            if place.tensor not in moved:
                moved[place.tensor] = place.like(place.tensor.to(device))
            place.put(moved[place.tensor])
    return BlockStream(list(blocks), device)


class BlockStream:
    """Copies each block's weights to the device for its forward pass.

    Attributes:
        copies: Copies so far; one for each block and forward pass.
        stream: The copy stream; `None` on a device without streams, where copies block.
    """

    def __init__(self, blocks: Sequence[nn.Module], device: torch.device) -> None:
        """Gather each block's weights in one buffer and hook the blocks."""
        self.copies = 0
        self.stream = _new_stream(device)
        self._weights = [_BlockWeights(block, self.stream) for block in blocks]
        largest = max((len(one.bytes) for one in self._weights), default=0)
        self._slots = [_Slot(largest, device, self.stream) for _ in range(2)]
        self._views = [[one.views(slot.bytes) for one in self._weights] for slot in self._slots]
        self._next: _Loaded | None = None
        self._current: _Loaded | None = None
        self._hooks: list[RemovableHandle] = []
        for index, block in enumerate(blocks):
            self._hooks.append(
                block.register_forward_pre_hook(functools.partial(self._before, index))
            )
            self._hooks.append(block.register_forward_hook(self._after, always_call=True))

    def close(self) -> None:
        """Stop streaming; the blocks keep their weights in main memory."""
        self._after()
        for hook in self._hooks:
            hook.remove()

    def _before(self, index: int, block: nn.Module, args: Any) -> None:
        self._after()  # after Ctrl-C in a block, for which torch calls no hook
        loaded = self._next
        if loaded is None or loaded.block != index:  # the first pass, or the last one ended midway
            loaded = self._fetch(index, slot=0)
        self._slots[loaded.slot].wait()
        self._weights[index].put(self._views[loaded.slot][index])
        self._current = loaded
        self._next = self._fetch((index + 1) % len(self._weights), slot=1 - loaded.slot)

    def _after(self, *_: Any) -> None:
        if self._current is not None:
            self._slots[self._current.slot].release()
            self._weights[self._current.block].put_masters()
            self._current = None

    def _fetch(self, index: int, *, slot: int) -> _Loaded:
        self._slots[slot].fill(self._weights[index].bytes)
        self.copies += 1
        return _Loaded(index, slot)


class _Loaded(NamedTuple):
    """A block, by index, and the slot that has its weights."""

    block: int
    slot: int


class _Place(NamedTuple):
    """A parameter or buffer of a module."""

    owner: nn.Module
    name: str
    tensor: Tensor

    def like(self, tensor: Tensor) -> Tensor:
        is_parameter = isinstance(self.tensor, nn.Parameter)
        return nn.Parameter(tensor, requires_grad=False) if is_parameter else tensor

    def put(self, tensor: Tensor) -> None:
        setattr(self.owner, self.name, tensor)


class _BlockWeights:
    """The weights of one block, in one buffer in main memory.

    Attributes:
        bytes: The buffer, uint8; page-locked if the device is a CUDA card.
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

    def views(self, buffer: Tensor) -> list[Tensor]:
        """Return every tensor of the block as a view of a buffer with its bytes."""
        views = []
        for place, offset in zip(self._places, self._offsets, strict=False):
            tensor = place.tensor
            part = buffer[offset : offset + tensor.nbytes]
            views.append(place.like(part.view(tensor.dtype).view(tensor.shape)))
        return views

    def put(self, tensors: Iterable[Tensor]) -> None:
        """Set the block's parameters and buffers to these tensors."""
        for place, tensor in zip(self._places, tensors, strict=True):
            place.put(tensor)

    def put_masters(self) -> None:
        """Set them to the weights in main memory."""
        self.put(self._masters)


class _Slot:
    """A buffer for one block on the device; CUDA events order its use.

    Attributes:
        bytes: The buffer, uint8.
    """

    def __init__(self, size: int, device: torch.device, stream: torch.cuda.Stream | None) -> None:
        self.bytes = torch.empty(size, dtype=torch.uint8, device=device)
        self._stream = stream
        if stream is not None:
            self.bytes.record_stream(stream)  # not to be reused during a copy
            self._filled = torch.cuda.Event()  # type: ignore[no-untyped-call]
            self._free = torch.cuda.Event()  # type: ignore[no-untyped-call]
            self.release()

    def fill(self, source: Tensor) -> None:
        """Copy a block in, once the work on the previous one has finished."""
        target = self.bytes[: len(source)]
        if self._stream is None:
            target.copy_(source)
            return
        self._stream.wait_event(self._free)
        with torch.cuda.stream(self._stream):
            target.copy_(source, non_blocking=True)
        self._filled.record(self._stream)

    def wait(self) -> None:
        """Make later work wait for the copy."""
        if self._stream is not None:
            torch.cuda.current_stream(self.bytes.device).wait_event(self._filled)

    def release(self) -> None:
        """Make the next copy wait for the work so far."""
        if self._stream is not None:
            self._free.record(torch.cuda.current_stream(self.bytes.device))


def _new_stream(device: torch.device) -> torch.cuda.Stream | None:
    if device.type != "cuda":
        return None
    return torch.cuda.Stream(device)  # type: ignore[no-untyped-call]


def _page_lock(memory: Tensor, stream: torch.cuda.Stream) -> None:
    """Page-lock memory until it is freed, so that copies are asynchronous.

    `pin_memory` would round each block up to a power of two: 43 GB instead of 22.
    """
    address = memory.data_ptr()
    runtime = torch.cuda.cudart()  # type: ignore[no-untyped-call]
    if int(runtime.cudaHostRegister(address, memory.nbytes, 0)) == 0:
        weakref.finalize(memory, _unlock, address, stream).atexit = False
        return
    with contextlib.suppress(RuntimeError):
        torch.zeros(1, device=stream.device)  # clears the error that CUDA keeps, by raising it
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
