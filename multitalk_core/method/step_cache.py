"""Step cache: a step reuses the last velocities while the model's answer would hardly change.

Used by `sampler.EulerSampler` and by hosts between the passes of a step and the model. The rule is
that of EasyCache (arXiv 2507.02860), which needs no calibration. Between two calls of the model,
its velocity changed k times as far as the latents did. The last velocity is reused while k times
the change of the latents since then, over the norm of the last velocity, stays below a threshold.
Departures:

- The velocity of each pass is reused. The paper adds the change of the latents to it; on the
  straight path of a flow model the velocity stays the same.
- The change is accumulated since the last model call, not summed over the steps between: the same
  on nearly straight paths. A sampler that adds noise makes it large, and the model runs.
- All passes of a step are reused or none, and the full pass decides, so that guidance is always
  computed from velocities of the same call.
- Motion latents do not count: they are replaced at each step.
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
    """The last latents, without motion latents, and the velocities of the model."""

    latents: Tensor
    velocities: dict[Pass, Tensor]


class StepCache:
    """The last velocities within one segment; make a new cache for each segment.

    They are reused while their estimated relative change is below `threshold`; 0 never reuses them.
    The first `fixed_frames` latent frames, which are replaced at each step, do not count.
    """

    def __init__(self, threshold: float, *, fixed_frames: int = 0) -> None:
        self._threshold = threshold
        self._fixed_frames = fixed_frames
        self._last: _Answer | None = None
        self._rate: float | None = None

    def reuse(self, latents: Tensor, now: Moment, passes: Sequence[Pass]) -> list[Tensor] | None:
        """Return one velocity for each pass of a step, or `None` if the model must run.

        Latents and velocities are `(B, 16, F, h, w)`; one decision holds for the whole batch.
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
            distance = float((now.latents - self._last.latents).norm())
            change = self._free(now.velocities[FULL] - self._last.velocities[FULL])
            self._rate = float(change.norm()) / distance if distance > 0 else None
        self._last = now

    def _free(self, latents: Tensor) -> Tensor:
        return latents[:, :, self._fixed_frames :]
