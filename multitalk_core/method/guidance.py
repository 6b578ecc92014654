"""Guidance: which passes a step needs, and how their velocities become one.

Used by `sampler.EulerSampler`; follows the guidance branches of MultiTalk
`wan/multitalk.py:generate` and `adaptive_projected_guidance` of `wan/utils/multitalk_utils.py`
(APG, arXiv 2410.02416).
Each pass leaves out one thing more than the pass before it; each difference between neighbours
points towards what was left out and is scaled. Departure: a scale of 1 for the audio saves a pass
(the sum is the same), as upstream does for the text only. Either guidance may be limited to a part
of the steps (arXiv 2404.07724 finds most of it of use in the middle); elsewhere its scale is 1.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor

from ..config import ApgConfig, SamplingConfig


class Pass(NamedTuple):
    """One call of the model in a step: with the prompt or the negative prompt, voiced or silent."""

    name: str
    prompt: bool
    voice: bool


FULL = Pass("full", prompt=True, voice=True)
WITHOUT_TEXT = Pass("without_text", prompt=False, voice=True)
WITHOUT_AUDIO = Pass("without_audio", prompt=True, voice=False)
UNCONDITIONAL = Pass("unconditional", prompt=False, voice=False)


def passes_needed(*, text_guidance: float, audio_guidance: float) -> tuple[Pass, ...]:
    """Give the passes of one step, the full one first; a scale of 1 needs no difference."""
    if not needs_negative_text(text_guidance):
        return (FULL,) if math.isclose(audio_guidance, 1.0) else (FULL, WITHOUT_AUDIO)
    if math.isclose(audio_guidance, 1.0):
        return (FULL, WITHOUT_TEXT)
    return (FULL, WITHOUT_TEXT, UNCONDITIONAL)


def needs_negative_text(text_guidance: float) -> bool:
    """Say whether a text scale makes use of the negative prompt."""
    return not math.isclose(text_guidance, 1.0)


def passes_of_run(config: SamplingConfig) -> tuple[Pass, ...]:
    """Give all passes that some step of a run needs, those of the first steps first."""
    changes = {
        config.text_guidance_start,
        config.text_guidance_end,
        config.audio_guidance_start,
        config.audio_guidance_end,
    }
    guidance = Guidance(config)
    steps = [guidance.passes(done) for done in sorted(changes)]
    return tuple(dict.fromkeys(one for passes in steps for one in passes))


class _Branch(NamedTuple):
    """One of the two guidances: its scale, from where to where it holds, and its APG."""

    scale: float
    start: float
    end: float
    project: Projection | None

    def scale_at(self, done: float) -> float:
        return self.scale if self.start <= done < self.end else 1.0


class Guidance:
    """The guidance of one segment; APG keeps a running average for each scale.

    An average moves on only at steps to which its guidance applies.
    """

    def __init__(self, config: SamplingConfig) -> None:
        """Take the scales of `config`, and the parts of the steps to which they apply."""
        self._text, self._audio = (
            _Branch(scale, start, end, Projection(config.apg) if config.apg else None)
            for scale, start, end in (
                (config.text_guidance, config.text_guidance_start, config.text_guidance_end),
                (config.audio_guidance, config.audio_guidance_start, config.audio_guidance_end),
            )
        )

    def passes(self, done: float) -> tuple[Pass, ...]:
        """Give the passes of the step before which a share `done` of the steps was taken."""
        return passes_needed(
            text_guidance=self._text.scale_at(done), audio_guidance=self._audio.scale_at(done)
        )

    def combine(self, passes: Sequence[Pass], velocities: Sequence[Tensor]) -> Tensor:
        """Make one velocity of those of the passes, `(1, 16, F, h, w)` each, in float32.

        Plain: v = v_last + sum of scale * difference. With APG: v = v_full + sum of
        (scale - 1) * projected difference.
        """
        full, guided = velocities[0], velocities[-1]
        branches = [self._text if one == WITHOUT_TEXT else self._audio for one in passes[1:]]
        differences = [a - b for a, b in pairwise(velocities)]
        if self._text.project is not None:
            guided = full
        for branch, difference in zip(branches, differences, strict=True):
            if branch.project is None:
                guided = guided + branch.scale * difference
            else:
                guided = guided + (branch.scale - 1) * branch.project(difference, full)
        return guided


class Projection:
    """APG of one guidance difference: momentum, a bound on its norm, then a projection."""

    def __init__(self, config: ApgConfig) -> None:
        """Start with no momentum."""
        self._config = config
        self._running: Tensor | None = None

    def __call__(self, difference: Tensor, full: Tensor) -> Tensor:
        """Return the part of the averaged difference perpendicular to the full prediction.

        Norm and projection span the whole latent `(1, 16, F, h, w)`; the projection is taken
        in float64, as upstream does.
        """
        if self._running is not None:
            difference = difference + self._config.momentum * self._running
        self._running = difference  # before the bound, as upstream
        if self._config.norm_threshold > 0:
            difference = difference * (self._config.norm_threshold / difference.norm()).clamp(max=1)
        direction = torch.nn.functional.normalize(full.double().flatten(), dim=0).view_as(full)
        along = (difference.double() * direction).sum() * direction
        return (difference.double() - along).to(full.dtype)
