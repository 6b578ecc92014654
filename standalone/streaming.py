"""Block-wise weight streaming: a transformer larger than the card, one block on it at a time.

The weights stay in main memory (page-locked for CUDA). A hook copies a block's packed weights to
the device before its forward pass and another drops the copy after it; everything outside the
blocks lies on the device throughout.
"""

from __future__ import annotations

import itertools
import logging
from typing import Any, Literal

import torch
from torch import Tensor, nn

Offload = Literal["auto", "none", "blocks"]

_ACTIVATION_WIDTHS = 24
"""Activations of a forward pass, in units of tokens x width x 2 bytes: measured to about 20."""

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
    inside = {id(tensor) for tensor in _tensors(blocks)}
    for tensor in _tensors(model):
        if id(tensor) not in inside:
            tensor.data = tensor.data.to(device)
    for block in blocks.children():
        loan = _Loan(block, device)
        block.register_forward_pre_hook(loan.hand_over)
        block.register_forward_hook(loan.take_back, always_call=True)


def weight_bytes(model: nn.Module) -> int:
    """Count the bytes of a model's weights as they are stored."""
    return sum(tensor.nbytes for tensor in _tensors(model))


class _Loan:
    """The two hooks of one block."""

    def __init__(self, block: nn.Module, device: torch.device) -> None:
        self._device = device
        self._masters: list[tuple[Tensor, Tensor]] = []
        for tensor in _tensors(block):
            if device.type == "cuda":
                tensor.data = tensor.data.pin_memory()
            self._masters.append((tensor, tensor.data))

    def hand_over(self, block: nn.Module, args: Any) -> None:
        for tensor, master in self._masters:
            tensor.data = master.to(self._device, non_blocking=True)

    def take_back(self, block: nn.Module, args: Any, output: Any) -> None:
        for tensor, master in self._masters:
            tensor.data = master


def _tensors(model: nn.Module) -> itertools.chain[Tensor]:
    return itertools.chain(model.parameters(), model.buffers())


def _free_bytes(device: torch.device) -> float:
    return torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else float("inf")
