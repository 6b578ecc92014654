"""Step cache: a step whose answer the model has nearly given already does not ask it again.

Used by `sampler.solve` and by hosts between the passes of a step and the model. The rule is that of
EasyCache (arXiv 2507.02860), which needs no calibration: between two calls of the model its
velocity changed k times as far as the latents did; while k times the way that the latents have
gone since, over the norm of the last velocity, stays below a threshold, the last answer is good.
Departures:

- What is reused is the velocity of each pass. The paper adds the way of the latents to it; on the
  straight path of a flow model the velocity stays as it is.
- The way is measured in one from the last call, not as a sum over the steps between: the same on
  nearly straight paths. A sampler that adds noise makes it long, and the model runs.
- All passes of a step are reused or none, and the full pass decides, so that the differences that
  guidance is made of are always between answers to the same question.
- Held frames do not count: they are noised anew at each step, and nobody asks where they go.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from torch import Tensor

from .guidance import FULL, Pass
from .schedule import Moment

FIRST_STEPS = 2
"""Steps that always run: the layout is settled there, and the rule needs two calls to compare."""

LAST_STEPS = 1
"""Steps that always run at the end, where details are."""


class _Answer(NamedTuple):
    """What the model was shown last, free frames alone, and what it said."""

    latents: Tensor
    velocities: dict[Pass, Tensor]


class StepCache:
    """What the model said last within one segment; make a new one for each."""

    def __init__(self, threshold: float, *, held_frames: int = 0) -> None:
        """Start with nothing known.

        Args:
            threshold: Estimated relative change of the velocity below which the last one is good;
                0 never reuses one.
            held_frames: Latent frames at the start that others put back at each step.
        """
        self._threshold = threshold
        self._held_frames = held_frames
        self._last: _Answer | None = None
        self._rate: float | None = None

    def reuse(self, latents: Tensor, now: Moment, passes: Sequence[Pass]) -> list[Tensor] | None:
        """Give the velocities of the passes, or `None` if the model must run.

        Args:
            latents: `(B, 16, F, h, w)`; a batch is decided on together.
            now: Where in the schedule they are.
            passes: What is asked for, the full pass first.

        Returns:
            One `(B, 16, F, h, w)` for each pass.
        """
        last = self._last
        if last is None or self._rate is None or not last.velocities.keys() >= set(passes):
            return None
        if not FIRST_STEPS <= now.step < now.num_steps - LAST_STEPS:
            return None
        change = self._rate * float((self._free(latents) - last.latents).norm())
        if change >= self._threshold * float(self._free(last.velocities[FULL]).norm()):
            return None
        return [last.velocities[one] for one in passes]

    def keep(self, latents: Tensor, passes: Sequence[Pass], velocities: Sequence[Tensor]) -> None:
        """Remember the velocities of the passes, the full one first; see `reuse`."""
        if self._threshold == 0:
            return
        now = _Answer(self._free(latents), dict(zip(passes, velocities, strict=True)))
        if self._last is not None:
            way = float((now.latents - self._last.latents).norm())
            change = self._free(now.velocities[FULL] - self._last.velocities[FULL])
            self._rate = float(change.norm()) / way if way > 0 else None
        self._last = now

    def _free(self, latents: Tensor) -> Tensor:
        return latents[:, :, self._held_frames :]
