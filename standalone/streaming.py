"""Block-wise weight streaming: a transformer larger than the card, one block on it at a time.

The weights stay in main memory (page-locked for CUDA). A hook copies a block's packed weights to
the device before its forward pass and another drops the copy after it; everything outside the
blocks lies on the device throughout.
"""

from __future__ import annotations

import itertools
import logging
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from .request import Offload

_ACTIVATION_WIDTHS = 24
"""Room left for the activations of a forward pass, in units of tokens x width x 2 bytes: 8 GB for
14B at 832x480x81. An estimate on the safe side, not a measurement."""

_log = logging.getLogger(__name__)


def place(
    model: nn.Module, device: torch.device, *, offload: Offload, num_tokens: int, width: int
) -> bool:
    """Bring a loaded transformer to the device, whole or block by block.

    Args:
        model: Has its equal layers in `blocks`.
        device: Where it computes.
        offload: `none` moves all, `blocks` streams, `auto` streams if the free memory is short.
        num_tokens: Tokens of one forward pass.
        width: Width of a token.

    Returns:
        Whether the blocks are streamed.
    """
    needed = weight_bytes(model) + num_tokens * width * 2 * _ACTIVATION_WIDTHS
    streamed = offload == "blocks" or (offload == "auto" and needed > _free_bytes(device))
    if streamed and device.type != "cpu":
        stream_blocks(model, device)
        _log.info("the transformer's blocks are streamed to %s one at a time", device)
        return True
    model.to(device)
    return False


def stream_blocks(model: nn.Module, device: torch.device) -> None:
    """Keep the weights of `model.blocks` in main memory and lend them to the device block by block.

    Args:
        model: Has its equal layers in `blocks`; the other parts move to the device.
        device: Where it computes.
    """
    blocks = model.get_submodule("blocks")
    inside = set(blocks.modules())
    for slot in _slots(model):
        if slot.owner not in inside:
            slot.put(slot.tensor.to(device))
    for block in blocks.children():
        loan = _Loan(block, device)
        block.register_forward_pre_hook(loan.hand_over)
        block.register_forward_hook(loan.take_back, always_call=True)


def weight_bytes(model: nn.Module) -> int:
    """Count the bytes of a model's weights as they are stored."""
    return sum(slot.tensor.nbytes for slot in _slots(model))


class _Slot(NamedTuple):
    """A place in a module that holds a parameter or a buffer."""

    owner: nn.Module
    name: str
    tensor: Tensor

    def put(self, tensor: Tensor) -> None:
        is_parameter = isinstance(self.tensor, nn.Parameter)
        value = nn.Parameter(tensor, requires_grad=False) if is_parameter else tensor
        setattr(self.owner, self.name, value)


class _Loan:
    """The two hooks of one block."""

    def __init__(self, block: nn.Module, device: torch.device) -> None:
        self._device = device
        if device.type == "cuda":
            for slot in _slots(block):
                slot.put(slot.tensor.pin_memory())
        self._masters = list(_slots(block))

    def hand_over(self, block: nn.Module, args: Any) -> None:
        for slot in self._masters:
            slot.put(slot.tensor.to(self._device, non_blocking=True))

    def take_back(self, block: nn.Module, args: Any, output: Any) -> None:
        for slot in self._masters:
            setattr(slot.owner, slot.name, slot.tensor)


def _slots(model: nn.Module) -> Iterator[_Slot]:
    for owner in model.modules():
        tensors = itertools.chain(
            owner.named_parameters(recurse=False), owner.named_buffers(recurse=False)
        )
        yield from [_Slot(owner, name, tensor) for name, tensor in tensors]


def _free_bytes(device: torch.device) -> float:
    return torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else float("inf")
