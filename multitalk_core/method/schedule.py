"""The flow-matching schedule: timesteps with shift, Euler steps, and noising of known latents.

Used by `sampler.EulerSampler`; follows `timestep_transform` and `add_noise` of MultiTalk
`wan/multitalk.py`, and the timesteps of SoulX-FlashTalk
`flash_talk/src/pipeline/flash_talk_pipeline.py`. Timesteps run from 1000 (noise) to 0 (clean); the
model predicts the velocity v = noise - clean. Formulas only, on whatever device and dtype the
tensors have.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from torch import Tensor

from ..config import Method

NUM_TIMESTEPS = 1000
"""The timestep of pure noise."""

_ROUNDING = 1e-3
"""Hosts keep noise levels in float32."""


class Moment(NamedTuple):
    """Where in its schedule the model is called.

    Attributes:
        timestep: 1000 to 0.
        step: Index of the step to whose noise levels the timestep belongs.
        num_steps: Steps of the schedule.
    """

    timestep: float
    step: int
    num_steps: int

    @property
    def done(self) -> float:
        """Share of the steps taken before this one, 0 to 1."""
        return self.step / self.num_steps


def moment(timestep: float, schedule: Sequence[float]) -> Moment:
    """Find a timestep in a schedule of falling ones that ends with 0.

    Samplers of higher order call the model between two entries, too; such a call belongs to the
    step from the one to the other.
    """
    reached = sum(entry >= timestep - _ROUNDING for entry in schedule[:-1])
    return Moment(timestep, max(reached - 1, 0), len(schedule) - 1)


def timesteps(steps: int, *, shift: float, method: Method = "multitalk") -> tuple[float, ...]:
    """Return the timesteps of a run: `steps` from 1000 down to near 1, shifted, and a final 0.

    Step i goes from entry i to entry i + 1. A shift above 1 spends more steps at high noise.
    FlashTalk's last step begins at 1000 / steps instead, so that all are equally long.
    """
    spacing = (NUM_TIMESTEPS - 1) / max(steps - 1, 1)
    if method == "flashtalk":
        spacing = NUM_TIMESTEPS / steps
    even = [NUM_TIMESTEPS - spacing * i for i in range(steps)] + [0.0]
    return tuple(shift_timestep(timestep, shift=shift) for timestep in even)


def shift_timestep(timestep: float, *, shift: float) -> float:
    """Move a timestep towards the noisy end: t' = s u / (1 + (s - 1) u) of 1000, u = t / 1000."""
    level = timestep / NUM_TIMESTEPS
    return NUM_TIMESTEPS * shift * level / (1 + (shift - 1) * level)


def euler_step(latents: Tensor, velocity: Tensor, *, now: float, later: float) -> Tensor:
    """Follow the velocity from timestep `now` to timestep `later`."""
    return latents - velocity * ((now - later) / NUM_TIMESTEPS)


def clean_estimate(latents: Tensor, velocity: Tensor, *, now: float) -> Tensor:
    """Give the clean latents that the velocity at timestep `now` points to."""
    return euler_step(latents, velocity, now=now, later=0.0)


def add_noise(clean: Tensor, noise: Tensor, *, timestep: float) -> Tensor:
    """Bring clean latents to the noise level of a timestep."""
    level = timestep / NUM_TIMESTEPS
    return (1 - level) * clean + level * noise
