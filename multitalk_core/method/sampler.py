"""Sampling one segment: from noise to clean latents.

Third step of `pipeline.generate`; follows the inner loop of MultiTalk `wan/multitalk.py:generate`.
A `Solver` does it: `solve`, upstream's Euler steps, or one of the caller's own (ComfyUI's samplers
come in this way). Whichever it is, the frames taken over from the segment before must be in place
at every call of the model, and at the end. Latents stay float32; the model computes in its dtype.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Protocol

import torch
from torch import Generator, Tensor
from torch.nn.functional import pad

from ..config import SamplingConfig
from ..errors import MultiTalkError
from ..model.attention import PLAIN, Attends
from ..model.dit import MultiTalkModel
from ..model.hooks import Hooks
from .conditioning import Condition, Motion
from .guidance import Guidance, Pass
from .schedule import clean_estimate, euler_step, moment, timesteps
from .step_cache import StepCache

Velocities = Callable[[Tensor, float, Sequence[Pass]], list[Tensor]]
"""The model within one segment: latents `(1, 16, F, h, w)`, timestep, the passes of this step ->
one velocity for each, in their order, float32."""

GuidedVelocity = Callable[[Tensor, float], Tensor]
"""All passes of one step with their guidance: latents, timestep -> velocity, float32."""

OnSolverStep = Callable[[int, int, Tensor], None]
"""Called after a step with its index, the number of steps, and the clean latents it points to."""


@dataclass(frozen=True, kw_only=True, slots=True)
class SegmentModel:
    """The transformer, and all that stays the same throughout one segment.

    Tensors are on the transformer's device and in the dtype it computes in, but for the condition.

    Attributes:
        index: Which segment, from 0.
        transformer: Wan2.1 with MultiTalk's audio layers.
        condition: What it is told about the picture, float32.
        windows: Audio features around each frame, `(S, T, 5, L, C)`.
        text: Encoded prompt, `(1, L, text_dim)`.
        negative_text: Encoded negative prompt, if any pass needs one.
        token_masks: Where each speaker is on the token grid, `(S + 1, h / 2 * w / 2)`, if needed.
        audio_strength: Multiplier of what the voices add.
        attends: Who computes attention.
    """

    index: int
    transformer: MultiTalkModel
    condition: Condition
    windows: Tensor
    text: Tensor
    negative_text: Tensor | None
    token_masks: Tensor | None
    audio_strength: float
    attends: Attends = PLAIN

    def velocities(self) -> Velocities:
        """Give the model as a function; it hears the voices once, here.

        The passes of a step are one batch, so that every weight is decoded or moved once for all.
        """
        dtype = self.windows.dtype
        condition, image = self.condition.latents.to(dtype), self.condition.image.to(dtype)
        voices = self.transformer.project_audio(self.windows)
        silence = self.transformer.project_audio(silent(self.windows))
        hooks = Hooks(attends=self.attends)

        def predict(latents: Tensor, timestep: float, passes: Sequence[Pass]) -> list[Tensor]:
            count = len(passes)
            velocity: Tensor = self.transformer(
                latents.to(dtype).expand(count, -1, -1, -1, -1),
                torch.full((count,), timestep, device=latents.device),
                condition=condition.expand(count, -1, -1, -1, -1),
                text=self._prompts(passes),
                image=image.expand(count, -1, -1),
                audio=_heard([voices if one.voice else silence for one in passes]),
                token_masks=self.token_masks,
                audio_strength=self.audio_strength,
                hooks=hooks,
            )
            return list(velocity.float().chunk(count))

        return predict

    def _prompts(self, passes: Sequence[Pass]) -> Tensor:
        """Give each pass its prompt, `(passes, L, text_dim)`; shorter ones end in zero rows."""
        negative = self.text if self.negative_text is None else self.negative_text
        prompts = [self.text if one.prompt else negative for one in passes]
        length = max(prompt.shape[1] for prompt in prompts)
        return torch.cat([pad(prompt, (0, 0, 0, length - prompt.shape[1])) for prompt in prompts])


def _heard(audio: list[Tensor]) -> Tensor | list[Tensor]:
    """Join the audio tokens of the passes, where all have those of as many speakers."""
    return torch.cat(audio) if len({one.shape for one in audio}) == 1 else audio


class Solver(Protocol):
    """Turns noise into the clean latents of one segment."""

    def __call__(
        self,
        noise: Tensor,
        model: SegmentModel,
        *,
        config: SamplingConfig,
        generator: Generator,
        on_step: OnSolverStep,
    ) -> Tensor:
        """Sample a segment.

        Args:
            noise: `(1, 16, F, h, w)` float32.
            model: The transformer and what it is told. The motion latents of its condition, if
                any, must stand in the latents at every call of the model and in the result.
            config: Steps, shift and guidance.
            generator: Where further noise is drawn.
            on_step: To be called after every step; what it raises ends the sampling.

        Returns:
            Clean latents, `(1, 16, F, h, w)` float32.

        Raises:
            MultiTalkError: If the latents are no longer finite numbers.
        """


def solve(
    noise: Tensor,
    model: SegmentModel,
    *,
    config: SamplingConfig,
    generator: Generator,
    on_step: OnSolverStep,
) -> Tensor:
    """Sample a segment as upstream does; the `Solver` of `generate` unless another is given."""
    schedule = timesteps(config.steps, shift=config.shift)
    motion = model.condition.motion
    guidance = Guidance(config)
    cache = StepCache(config.step_cache, held_frames=0 if motion is None else motion.num_frames)
    velocities = model.velocities()

    def guided(latents: Tensor, timestep: float) -> Tensor:
        now = moment(timestep, schedule)
        passes = guidance.passes(now.done)
        found = cache.reuse(latents, now, passes)
        if found is None:
            found = velocities(latents, timestep, passes)
            cache.keep(latents, passes, found)
        return guidance.combine(passes, found)

    return euler(
        noise,
        guided,
        schedule=schedule,
        motion=motion,
        generator=generator,
        on_step=on_step,
    )


def euler(
    noise: Tensor,
    velocity: GuidedVelocity,
    *,
    schedule: Sequence[float],
    motion: Motion | None,
    generator: Generator,
    on_step: OnSolverStep,
) -> Tensor:
    """Take Euler steps, with the motion latents noised anew at each.

    Args:
        noise: `(1, 16, F, h, w)` float32.
        velocity: The guided model.
        schedule: Falling timesteps, one more than steps; ends with 0.
        motion: Frames taken over from the segment before, if any; they are put back after
            every step.
        generator: Where the noise of the motion latents is drawn.
        on_step: Called after every step.

    Returns:
        Clean latents, `(1, 16, F, h, w)` float32.

    Raises:
        MultiTalkError: If the latents are no longer finite numbers.
    """
    num_steps = len(schedule) - 1
    latents = noise
    if motion:
        latents = motion.inject(latents, timestep=schedule[0], generator=generator)
    for step, (now, later) in enumerate(pairwise(schedule)):
        guided = velocity(latents, now)
        clean = clean_estimate(latents, guided, now=now)
        if motion:
            clean = motion.hold(clean, timestep=0.0, noise=None)
        latents = euler_step(latents, guided, now=now, later=later)
        if motion:
            latents = motion.inject(latents, timestep=later, generator=generator)
        require_finite(latents, what=f"The latents of step {step + 1} of {num_steps}")
        on_step(step, num_steps, clean)
    return latents


def silent(windows: Tensor) -> Tensor:
    """Give the windows of the passes without audio: one stream of zeros, `(1, T, 5, L, C)`."""
    return torch.zeros_like(windows[-1:])


def require_finite(tensor: Tensor, *, what: str) -> None:
    """Raise unless every number is finite; `what` begins the message and stands in the plural."""
    if not bool(tensor.isfinite().all()):
        raise MultiTalkError(
            f"{what} are not finite numbers (NaN or infinite). Usual causes: float16 overflow "
            "(choose bfloat16, or float32 for the VAE), a LoRA that does not fit at this strength, "
            "or a damaged weights file."
        )
