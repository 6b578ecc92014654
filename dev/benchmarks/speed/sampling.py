"""Samples one segment with core's solver, for the tables of steps, memory and errors."""

from __future__ import annotations

from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor

from ....multitalk_core.config import SamplingConfig
from ....multitalk_core.inputs.scene import Text
from ....multitalk_core.method.conditioning import Condition
from ....multitalk_core.method.sampler import EulerSampler, SegmentInputs
from ....multitalk_core.model.dit import MultiTalkModel
from ....standalone.streaming import stream_blocks
from .bench import Bench, release
from .measure import Spread, now, spread

_GUIDANCE = {1: (1.0, 1.0), 2: (1.0, 4.0), 3: (5.0, 4.0)}
"""Text and audio guidance by the number of passes that they need."""


class Sampled(NamedTuple):
    """A sampled segment.

    Attributes:
        latents: Clean latents, float32.
        step: Seconds of each step; the first includes the work done once a segment.
    """

    latents: Tensor
    step: Spread


def sample(
    bench: Bench, model: MultiTalkModel, *, passes: int, steps: int, num_speakers: int
) -> Sampled:
    """Sample one segment and time its steps."""
    config = bench.scale.config
    text_guidance, audio_guidance = _GUIDANCE[passes]
    text, negative = (
        bench.normal(1, config.text_len, config.text_dim, seed=seed) for seed in (3, 5)
    )
    known = bench.normal(1, 20, *bench.scale.latent, seed=2).float()
    ends: list[float] = []
    inputs = SegmentInputs(
        index=0,
        condition=Condition(known[:, 4:], known[:, :4], bench.image(), None),
        windows=bench.windows(num_speakers),
        text=Text(text, negative),
        token_masks=bench.token_masks(num_speakers),
        config=SamplingConfig(
            steps=steps, text_guidance=text_guidance, audio_guidance=audio_guidance
        ),
        generator=torch.Generator().manual_seed(0),
        on_step=lambda *_: ends.append(now(bench.device)),
    )
    ends.append(now(bench.device))
    latents = EulerSampler(model, dtype=bench.dtype, attends=bench.attends).sample(
        bench.normal(1, 16, *bench.scale.latent, seed=1).float(),
        inputs,
    )
    return Sampled(latents, spread([b - a for a, b in pairwise(ends)]))


def stream(bench: Bench, model: MultiTalkModel) -> None:
    """Move a model to main memory and stream its blocks to the device."""
    model.to("cpu")
    release(bench.device)
    stream_blocks(model, model.blocks, bench.device)
    release(bench.device)


def block_bytes(model: MultiTalkModel) -> int:
    """Give the stored bytes of the blocks' weights."""
    return sum(value.nbytes for value in model.blocks.state_dict().values())
