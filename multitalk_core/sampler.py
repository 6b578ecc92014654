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

from .conditioning import Condition, Motion
from .config import SamplingConfig
from .dit import MultiTalkModel
from .errors import MultiTalkError
from .guidance import Guidance, Pass
from .schedule import clean_estimate, euler_step, timesteps

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
    """

    index: int
    transformer: MultiTalkModel
    condition: Condition
    windows: Tensor
    text: Tensor
    negative_text: Tensor | None
    token_masks: Tensor | None
    audio_strength: float

    def velocities(self) -> Velocities:
        """Give the model as a function; it hears the voices once, here."""
        dtype = self.windows.dtype
        condition, image = self.condition.latents.to(dtype), self.condition.image.to(dtype)
        voices = self.transformer.project_audio(self.windows)
        silence = self.transformer.project_audio(silent(self.windows))

        def predict(latents: Tensor, timestep: float, which: Pass) -> Tensor:
            negative = self.negative_text
            velocity: Tensor = self.transformer(
                latents.to(dtype),
                torch.tensor([timestep], device=latents.device),
                condition=condition,
                text=self.text if which.prompt or negative is None else negative,
                image=image,
                audio=voices if which.voice else silence,
                token_masks=self.token_masks,
                audio_strength=self.audio_strength,
            )
            return velocity.float()

        return lambda latents, timestep, passes: [
            predict(latents, timestep, which) for which in passes
        ]


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
    guidance = Guidance(config)
    velocities = model.velocities()

    def guided(latents: Tensor, timestep: float) -> Tensor:
        return guidance.combine(velocities(latents, timestep, guidance.passes))

    return euler(
        noise,
        guided,
        schedule=timesteps(config.steps, shift=config.shift),
        motion=model.condition.motion,
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
