"""Sampling one segment: from noise to clean latents in Euler steps.

Third step of `pipeline.generate`; follows the inner loop of MultiTalk `wan/multitalk.py:generate`.
Latents stay float32; the model computes in its own dtype.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

from torch import Generator, Tensor

from .conditioning import Motion
from .config import SamplingConfig
from .errors import MultiTalkError
from .guidance import Guidance, Pass
from .schedule import clean_estimate, euler_step, timesteps

Velocity = Callable[[Tensor, float, Pass], Tensor]
"""The model within one segment: latents `(1, 16, F, h, w)`, timestep, pass -> velocity, float32."""


def sample(
    noise: Tensor,
    velocity: Velocity,
    *,
    config: SamplingConfig,
    motion: Motion | None,
    generator: Generator,
    on_step: Callable[[int, Tensor], None],
) -> Tensor:
    """Turn noise into the clean latents of one segment.

    Args:
        noise: `(1, 16, F, h, w)` float32.
        velocity: The model, called once for each pass of each step.
        config: Steps, shift and guidance.
        motion: Frames taken over from the segment before, if any; they are put back after
            every step.
        generator: Where the noise of the motion latents is drawn.
        on_step: Called after every step with its index and the clean latents it points to; what
            it raises ends the sampling.

    Returns:
        Clean latents, `(1, 16, F, h, w)` float32.

    Raises:
        MultiTalkError: If the latents are no longer finite numbers.
    """
    schedule = timesteps(config.steps, shift=config.shift)
    guidance = Guidance(config)
    latents = noise
    if motion:
        latents = motion.inject(latents, timestep=schedule[0], generator=generator)
    for step, (now, later) in enumerate(pairwise(schedule)):
        guided = guidance.combine([velocity(latents, now, which) for which in guidance.passes])
        clean = clean_estimate(latents, guided, now=now)
        latents = euler_step(latents, guided, now=now, later=later)
        if motion:
            latents = motion.inject(latents, timestep=later, generator=generator)
        require_finite(latents, what=f"The latents of step {step + 1} of {config.steps}")
        on_step(step, clean)
    return latents


def require_finite(tensor: Tensor, *, what: str) -> None:
    """Raise unless every number is finite; `what` begins the message and stands in the plural."""
    if not bool(tensor.isfinite().all()):
        raise MultiTalkError(
            f"{what} are not finite numbers (NaN or infinite). Usual causes: float16 overflow "
            "(choose bfloat16, or float32 for the VAE), a LoRA that does not fit at this strength, "
            "or a damaged weights file."
        )
