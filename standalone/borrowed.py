"""Borrowed models: classes of `diffusers` and `transformers`, filled from a weights file.

Their configurations come from tensor shapes and their weights from `wan_gguf_loader`, so nothing is
looked up on a hub. They lie in main memory and are moved to the device only while they are used.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import nn

from ..multitalk_core.files.sizes import check_shapes
from ..wan_gguf_loader.files import WeightsFile
from ..wan_gguf_loader.load import account_for
from .streaming import stream_blocks


def fill(
    model: nn.Module, file: WeightsFile, *, names: Mapping[str, str], dtype: torch.dtype
) -> None:
    """Give a model built on the meta device its weights.

    Args:
        model: A model whose parameters lie on the meta device.
        file: Where the weights are.
        names: The model's state-dict names to the file's names.
        dtype: Type of every floating-point weight.

    Raises:
        WeightsError: If a tensor is missing or has another shape.
        GGUFError: If a tensor holds no weights, or one that `names` lacks changes the others.
    """
    needed = {names[name]: tuple(meta.shape) for name, meta in model.state_dict().items()}
    check_shapes(file.shapes, needed, source=file.path.name, what=f"a {type(model).__name__}")
    account_for(file, needed)
    tensors = {name: file.dequantize(names[name], dtype) for name in model.state_dict()}
    model.load_state_dict(tensors, assign=True)
    model.requires_grad_(False)
    model.eval()


def held_bytes(file: WeightsFile, dtype: torch.dtype) -> int:
    """Give the bytes of a file's weights once `fill` has read them."""
    beside = file.variant.spelling.naming.beside
    return dtype.itemsize * sum(
        info.num_elements
        for name, info in file.tensors.items()
        if not (beside and beside.search(name))
    )


@contextmanager
def on_device(
    model: nn.Module, device: torch.device, *, streamed: nn.ModuleList | None = None
) -> Iterator[None]:
    """Hold a model on the device for a `with` block; it goes back to main memory at its end.

    Args:
        model: The model.
        device: Where it computes meanwhile.
        streamed: Those of its layers that stay in main memory and visit the device in turn.
    """
    stream = None
    try:
        if streamed is None:
            model.to(device)
        else:
            stream = stream_blocks(model, streamed, device)
        yield
    finally:
        if stream is not None:
            stream.close()
        if device.type != "cpu":
            model.to("cpu")
        if device.type == "cuda":
            torch.cuda.empty_cache()
