"""The video autoencoder under Wan2.1's own names; the names and shapes follow from its graph.

Facts from `WanVAE_` in MultiTalk `wan/modules/vae.py` (the file is Wan2.1's).
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise

from torch import Tensor

from .fill import fill

DIM = 8
Z_DIM = 16
_MULTIPLIERS = (1, 2, 4, 4)
_NUM_BLOCKS = 2
_TIME_DOWN = (False, True, True)
_Shape = tuple[str, tuple[int, ...]]


def vae(*, seed: int) -> dict[str, Tensor]:
    """Draw the weights of an autoencoder of width 8."""
    return fill(dict(_shapes()), seed=seed, std={"decoder.head.2.weight": 0.03})


def _shapes() -> Iterator[_Shape]:
    yield from _encoder()
    yield from _conv("conv1", 2 * Z_DIM, 2 * Z_DIM, 1, 1, 1)
    yield from _conv("conv2", Z_DIM, Z_DIM, 1, 1, 1)
    yield from _decoder()


def _encoder() -> Iterator[_Shape]:
    widths = [DIM, *(DIM * multiplier for multiplier in _MULTIPLIERS)]
    yield from _conv("encoder.conv1", DIM, 3, 3, 3, 3)
    i_layer = 0
    for level, (before, after) in enumerate(pairwise(widths)):
        for block in range(_NUM_BLOCKS):
            name = f"encoder.downsamples.{i_layer}"
            yield from _residual(name, after if block else before, after)
            i_layer += 1
        if level < len(_TIME_DOWN):
            name = f"encoder.downsamples.{i_layer}"
            yield from _conv(f"{name}.resample.1", after, after, 3, 3)
            if _TIME_DOWN[level]:
                yield from _conv(f"{name}.time_conv", after, after, 3, 1, 1)
            i_layer += 1
    yield from _middle("encoder", widths[-1])
    yield from _head("encoder", widths[-1], 2 * Z_DIM)


def _decoder() -> Iterator[_Shape]:
    widths = [DIM * multiplier for multiplier in (_MULTIPLIERS[-1], *reversed(_MULTIPLIERS))]
    time_up = _TIME_DOWN[::-1]
    yield from _conv("decoder.conv1", widths[0], Z_DIM, 3, 3, 3)
    yield from _middle("decoder", widths[0])
    i_layer = 0
    for level, (before, after) in enumerate(pairwise(widths)):
        entering = before // 2 if level else before  # each upsampling halves the channels
        for block in range(_NUM_BLOCKS + 1):
            name = f"decoder.upsamples.{i_layer}"
            yield from _residual(name, after if block else entering, after)
            i_layer += 1
        if level < len(time_up):
            name = f"decoder.upsamples.{i_layer}"
            yield from _conv(f"{name}.resample.1", after // 2, after, 3, 3)
            if time_up[level]:
                yield from _conv(f"{name}.time_conv", 2 * after, after, 3, 1, 1)
            i_layer += 1
    yield from _head("decoder", widths[-1], 3)


def _middle(part: str, width: int) -> Iterator[_Shape]:
    yield from _residual(f"{part}.middle.0", width, width)
    yield f"{part}.middle.1.norm.gamma", (width, 1, 1)
    yield from _conv(f"{part}.middle.1.to_qkv", 3 * width, width, 1, 1)
    yield from _conv(f"{part}.middle.1.proj", width, width, 1, 1)
    yield from _residual(f"{part}.middle.2", width, width)


def _head(part: str, width: int, outputs: int) -> Iterator[_Shape]:
    yield f"{part}.head.0.gamma", (width, 1, 1, 1)
    yield from _conv(f"{part}.head.2", outputs, width, 3, 3, 3)


def _residual(name: str, before: int, after: int) -> Iterator[_Shape]:
    yield f"{name}.residual.0.gamma", (before, 1, 1, 1)
    yield from _conv(f"{name}.residual.2", after, before, 3, 3, 3)
    yield f"{name}.residual.3.gamma", (after, 1, 1, 1)
    yield from _conv(f"{name}.residual.6", after, after, 3, 3, 3)
    if before != after:
        yield from _conv(f"{name}.shortcut", after, before, 1, 1, 1)


def _conv(name: str, outputs: int, inputs: int, *kernel: int) -> Iterator[_Shape]:
    yield f"{name}.weight", (outputs, inputs, *kernel)
    yield f"{name}.bias", (outputs,)
