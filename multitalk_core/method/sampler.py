"""Sampling one segment: from noise to clean latents.

Follows the inner loop of MultiTalk `wan/multitalk.py:generate`, and of SoulX-FlashTalk
`FlashTalkPipeline.generate`, whose steps end in new noise. `EulerSampler` takes upstream's steps;
ComfyUI's samplers are another `SegmentSampler`. Every sampler keeps the motion frames in place at
each call of the model and in the result. Latents are float32; the model computes in its own dtype.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Protocol

import torch
from torch import Generator, Tensor
from torch.nn.functional import pad

from ..config import SamplingConfig
from ..errors import MultiTalkError
from ..inputs.scene import Text
from ..model.attention import PLAIN, Attends
from ..model.audio_tokens import AudioContext
from ..model.dit import MultiTalkModel
from ..model.hooks import Hooks
from .conditioning import Condition, Motion, draw_noise
from .guidance import Guidance, Pass
from .schedule import add_noise, clean_estimate, euler_step, moment, timesteps
from .step_cache import StepCache

Velocities = Callable[[Tensor, float, Sequence[Pass]], list[Tensor]]
"""The model within one segment: from latents `(1, 16, F, h, w)`, timestep and passes of the step to
one float32 velocity for each pass."""

GuidedVelocity = Callable[[Tensor, float], Tensor]
"""The guided model: from latents and timestep to one float32 velocity."""

OnSamplerStep = Callable[[int, int, Tensor], None]
"""Called after a step with its index, the number of steps, and the clean latents it points to."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class SegmentInputs:
    """Conditions and settings of one segment.

    Attributes:
        index: Which segment, from 0.
        condition: The picture. Its motion latents, if any, must be in the latents at every call of
            the model and in the result.
        windows: Audio features around each frame, `(S, T, 5, L, C)`.
        text: Encoded prompts.
        token_masks: Where each speaker is on the token grid, `(S + 1, N)`, if there are several.
        config: Steps, shift, guidance and audio strength.
        generator: Source of further noise.
        on_step: To be called after every step; what it raises ends the sampling.
    """

    index: int
    condition: Condition
    windows: Tensor
    text: Text
    token_masks: Tensor | None
    config: SamplingConfig
    generator: Generator
    on_step: OnSamplerStep


class SegmentSampler(Protocol):
    """Turns noise into the clean latents of one segment."""

    def sample(self, noise: Tensor, inputs: SegmentInputs) -> Tensor:
        """Sample clean latents from noise, both `(1, 16, F, h, w)` float32.

        Raises:
            MultiTalkError: If the latents are no longer finite numbers.
        """


class EulerSampler:
    """Upstream's Euler steps; the transformer computes in `dtype`."""

    def __init__(
        self, transformer: MultiTalkModel, *, dtype: torch.dtype, attends: Attends = PLAIN
    ) -> None:
        self._transformer = transformer
        self._dtype = dtype
        self._hooks = Hooks(attends=attends)

    def sample(self, noise: Tensor, inputs: SegmentInputs) -> Tensor:
        """Sample a segment as upstream does; see `SegmentSampler`."""
        config = inputs.config
        schedule = timesteps(config.steps, shift=config.shift, method=config.method)
        motion = inputs.condition.motion
        guidance = Guidance(config)
        cache = StepCache(
            config.step_cache, fixed_frames=0 if motion is None else motion.num_frames
        )
        velocities = self.velocities(inputs, device=noise.device)

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
            renoised=config.method == "flashtalk",
            generator=inputs.generator,
            on_step=inputs.on_step,
        )

    def velocities(self, inputs: SegmentInputs, *, device: torch.device) -> Velocities:
        """Return the model as a function, with the audio projected once for all steps.

        The passes of a step are one batch, so that each weight is decoded or moved once.
        """
        dtype, transformer = self._dtype, self._transformer
        channels, image = (
            one.to(device, dtype) for one in (inputs.condition.channels(), inputs.condition.image)
        )
        windows = inputs.windows.to(device, dtype)
        masks = None if inputs.token_masks is None else inputs.token_masks.to(device)
        voiced, silence = (
            AudioContext(transformer.project_audio(one), masks, inputs.config.audio_strength)
            for one in (windows, silent(windows))
        )
        prompt, negative = inputs.text
        text = Text(
            prompt.to(device, dtype), None if negative is None else negative.to(device, dtype)
        )

        def predict(latents: Tensor, timestep: float, passes: Sequence[Pass]) -> list[Tensor]:
            count = len(passes)
            velocity: Tensor = transformer(
                latents.to(dtype).expand(count, -1, -1, -1, -1),
                torch.full((count,), timestep, device=latents.device),
                condition=channels.expand(count, -1, -1, -1, -1),
                text=_prompts(text, passes),
                image=image.expand(count, -1, -1),
                audio=_join([voiced if one.voice else silence for one in passes]),
                hooks=self._hooks,
            )
            return list(velocity.float().chunk(count))

        return predict


def _prompts(text: Text, passes: Sequence[Pass]) -> Tensor:
    """Give each pass its prompt, `(passes, L, text_dim)`; shorter ones end in zero rows."""
    negative = text.prompt if text.negative is None else text.negative
    prompts = [text.prompt if one.prompt else negative for one in passes]
    length = max(prompt.shape[1] for prompt in prompts)
    return torch.cat([pad(prompt, (0, 0, 0, length - prompt.shape[1])) for prompt in prompts])


def _join(audio: list[AudioContext]) -> AudioContext | list[AudioContext]:
    """Join the audio of the passes if all have the same number of speakers."""
    if len({one.tokens.shape for one in audio}) > 1:
        return audio
    return replace(audio[0], tokens=torch.cat([one.tokens for one in audio]))


def euler(
    noise: Tensor,
    velocity: GuidedVelocity,
    *,
    schedule: Sequence[float],
    motion: Motion | None,
    renoised: bool = False,
    generator: Generator,
    on_step: OnSamplerStep,
) -> Tensor:
    """Take Euler steps; the motion latents get new noise at each.

    Args:
        noise: `(1, 16, F, h, w)` float32.
        velocity: The guided model.
        schedule: Falling timesteps, one more than steps; ends with 0.
        motion: Frames taken over from the segment before, if any; they are put back after
            every step.
        renoised: Whether a step ends in the clean latents with new noise, as FlashTalk's do; then
            noise of the latents' shape is drawn for every step, the last one too.
        generator: Where that noise and the noise of the motion latents are drawn.
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
        if renoised:
            fresh = draw_noise(latents.shape, generator).to(latents.device)
            latents = add_noise(clean, fresh, timestep=later)
        else:
            latents = euler_step(latents, guided, now=now, later=later)
        if motion:
            clean = motion.put(clean, timestep=0.0, noise=None)
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
