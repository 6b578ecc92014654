"""GUIDER: upstream's guidance by text and audio, with ComfyUI's calls of the model.

The passes of a step are conditionings to ComfyUI, which batches them as memory allows and applies
hooks, patches and context windows. The formulas are core's. Departure from `CFGGuider`: a patch
that replaces the guidance formula has no effect, because there are two scales.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import comfy.conds
import comfy.samplers
import torch
from torch import Tensor

from ...multitalk_core.config import SamplingConfig
from ...multitalk_core.errors import InputError
from ...multitalk_core.geometry import FRAME_STRIDE, TOKEN_PIXELS, Size
from ...multitalk_core.inputs.speech import Speech
from ...multitalk_core.method.conditioning import Motion
from ...multitalk_core.method.guidance import Guidance, Pass, passes_of_run
from ...multitalk_core.method.sampler import silent
from ...multitalk_core.method.schedule import NUM_TIMESTEPS, moment
from ...multitalk_core.method.segments import Segment
from ...multitalk_core.method.step_cache import StepCache

_NAMES = ("positive", "negative", "unconditional", "without_audio")
"""ComfyUI's names of the passes; some patches look for the first two."""

_LATENT_CHANNELS = 16

_log = logging.getLogger(__name__)


class Audio(NamedTuple):
    """Audio of one segment.

    Attributes:
        windows: Audio features around each frame, `(S, T, 5, L, C)`.
        token_masks: Where each speaker is on the token grid, `(S + 1, N)`; `None` for a single one.
    """

    windows: Tensor
    token_masks: Tensor | None


@dataclass(frozen=True, kw_only=True, slots=True)
class FixedMotion:
    """Motion latents that are put into the latents at every call of the model.

    Attributes:
        motion: The frames taken over from the segment before.
        noise: Of the whole segment, `(1, 16, F, h, w)`. It is the same at all noise levels, as in
            ComfyUI's own inpainting: samplers of higher order need a model that does not jump.
    """

    motion: Motion
    noise: Tensor

    def put(self, latents: Tensor, *, sigma: float) -> Tensor:
        """Give `latents` with the frames in place at noise level `sigma`, 0 to 1."""
        noise = self.noise[:, :, : self.motion.num_frames]
        return self.motion.put(latents, timestep=sigma * NUM_TIMESTEPS, noise=noise)


class AudioCond(comfy.conds.CONDRegular):
    """The audio tokens of a pass.

    ComfyUI batches conditionings that can be concatenated. Tokens of different numbers of speakers
    become a list with a tensor for each entry of the batch.
    """

    def can_concat(self, other: Any) -> bool:
        return isinstance(other, AudioCond)

    def concat(self, others: list[Any]) -> Tensor | list[Tensor]:
        conds = [self.cond, *(other.cond for other in others)]
        if len({cond.shape for cond in conds}) == 1:
            return torch.cat(conds)
        return [entry for cond in conds for entry in cond.split(1)]


class SegmentGuider(comfy.samplers.CFGGuider):
    """The guidance of one segment, for ComfyUI's samplers.

    Attributes:
        cfg: The text guidance; ComfyUI's callbacks read it.
    """

    def __init__(
        self,
        model: Any,
        *,
        audio: Audio | None = None,
        config: SamplingConfig,
        fixed: FixedMotion | None = None,
        fixed_frames: int = 0,
    ) -> None:
        """Plan the passes on a MODEL of ours with audio layers.

        Args:
            model: The MODEL.
            audio: Audio of the segment; `LatentGuider` finds it once the latent is known.
            config: Guidance, strength and step cache; the rest is the sampler's.
            fixed: Motion latents to put in place at every call of the model.
            fixed_frames: Latent frames at the start that `fixed` or the sampler puts in place.
        """
        super().__init__(model)
        self._audio = audio
        self._config = config
        self._fixed = fixed
        self._fixed_frames = fixed_frames
        self._passes = dict(zip(_NAMES, passes_of_run(config), strict=False))
        self._names = {which: name for name, which in self._passes.items()}
        self._run: _Run | None = None
        self.set_cfg(config.text_guidance)

    def set_conds(self, positive: list[Any], negative: list[Any] | None) -> None:
        """Give the prompts, with what WanImageToVideo tells about the picture.

        Raises:
            InputError: If the text guidance needs a negative prompt and there is none.
        """
        prompts = {name: positive if one.prompt else negative for name, one in self._passes.items()}
        if None in prompts.values():
            raise InputError(
                f"A text guidance of {self._config.text_guidance} needs a negative prompt. Connect "
                "`negative` (it may be empty), or set the text guidance to 1."
            )
        self.inner_set_conds(prompts)

    def inner_sample(
        self,
        noise: Tensor,
        latent_image: Tensor,
        device: Any,
        sampler: Any,
        sigmas: Tensor,
        *args: Any,
        **kwargs: Any,
    ) -> Tensor:
        """Sample as ComfyUI does; the model is loaded by now, so it can project the audio."""
        if noise.ndim != 5 or noise.shape[1] != _LATENT_CHANNELS:
            raise InputError(
                f"The latent has the shape {tuple(noise.shape)}; a video latent (1, 16, frames, "
                "height, width) is needed. Connect the latent of WanImageToVideo."
            )
        if "sampler_cfg_function" in self.model_options:
            _log.warning(
                "A patch of the model replaces the guidance formula (as RescaleCFG does); it has "
                "no effect, for MultiTalk guides by text and by audio."
            )
        self._set_audio(self.audio_of(noise), device=noise.device)
        self._run = _Run(
            schedule=[float(sigma) * NUM_TIMESTEPS for sigma in sigmas],
            guidance=[Guidance(self._config) for _ in range(noise.shape[0])],
            cache=StepCache(self._config.step_cache, fixed_frames=self._fixed_frames),
        )
        try:
            samples: Tensor = super().inner_sample(
                noise, latent_image, device, sampler, sigmas, *args, **kwargs
            )
        finally:
            self._run = None
        return samples

    def predict_noise(
        self, x: Tensor, timestep: Tensor, model_options: dict[str, Any], seed: int | None = None
    ) -> Tensor:
        """Give the guided clean latents at noise level `timestep` `(B,)`, 0 to 1."""
        run = self._run
        assert run is not None, "ComfyUI predicts within `inner_sample`"
        if self._fixed is not None:
            x = self._fixed.put(x, sigma=float(timestep[0]))
        now = moment(float(timestep[0]) * NUM_TIMESTEPS, run.schedule)
        passes = run.guidance[0].passes(now.done)
        conds = [self.conds[self._names[which]] for which in passes]
        known = {"model": self.inner_model, "sigma": timestep, "model_options": model_options}
        sigma = timestep.view(-1, 1, 1, 1, 1)
        velocities = run.cache.reuse(x, now, passes)
        if velocities is None:
            velocities = [(x - one) / sigma for one in self._ask(x, timestep, conds, known)]
            run.cache.keep(x, passes, velocities)
        known |= {"cond_scale": self.cfg, "timestep": timestep, "input": x}
        for change in model_options.get("sampler_pre_cfg_function", ()):
            clean = change(
                {"conds": conds, "conds_out": [x - sigma * one for one in velocities], **known}
            )
            velocities = [(x - one) / sigma for one in clean]
        guided = x - sigma * run.combine(passes, velocities)
        for change in model_options.get("sampler_post_cfg_function", ()):
            guided = change(
                {
                    "denoised": guided,
                    "cond": conds[0],
                    "uncond": conds[-1],
                    "cond_denoised": x - sigma * velocities[0],
                    "uncond_denoised": x - sigma * velocities[-1],
                    **known,
                }
            )
        return guided if self._fixed is None else self._fixed.put(guided, sigma=0.0)

    def audio_of(self, noise: Tensor) -> Audio:
        """Give what the segment of latents `(B, 16, F, h, w)` hears."""
        assert self._audio is not None, "`LatentGuider` needs no audio; others are given it"
        return self._audio

    def _ask(
        self, x: Tensor, timestep: Tensor, conds: list[Any], known: dict[str, Any]
    ) -> list[Tensor]:
        """Run the model for each of `conds`; give the clean latents it points to."""
        options: dict[str, Any] = known["model_options"]
        call = options.get("sampler_calc_cond_batch_function")
        clean: list[Tensor] = (
            comfy.samplers.calc_cond_batch(self.inner_model, conds, x, timestep, options)
            if call is None
            else call({"conds": conds, "input": x, **known})
        )
        return clean

    def _set_audio(self, audio: Audio, *, device: torch.device) -> None:
        """Put the audio tokens into the passes' conditionings."""
        net = self.inner_model.diffusion_model
        windows = audio.windows.to(device, self.inner_model.get_dtype_inference())
        voiced, silence = net.project_audio(windows), net.project_audio(silent(windows))
        shared = {"audio_strength": comfy.conds.CONDConstant(self._config.audio_strength)}
        if audio.token_masks is not None:
            shared["token_masks"] = comfy.conds.CONDConstant(audio.token_masks.to(device))
        for name, which in self._passes.items():
            tokens = AudioCond(voiced if which.voice else silence)
            for cond in self.conds[name]:
                cond["model_conds"] = {**cond["model_conds"], **shared, "audio": tokens}


class LatentGuider(SegmentGuider):
    """The guidance of a segment whose size is that of its latent, for SamplerCustomAdvanced."""

    def __init__(
        self,
        model: Any,
        *,
        speech: Speech,
        start_frame: int,
        masks_at: Callable[[Size], Tensor | None],
        config: SamplingConfig,
    ) -> None:
        """Plan the passes; `masks_at` returns the token masks for a size of the video."""
        super().__init__(model, config=config)
        self._speech = speech
        self._start_frame = start_frame
        self._masks_at = masks_at

    def audio_of(self, noise: Tensor) -> Audio:
        """Give what the segment of latents `(B, 16, F, h, w)` hears."""
        frames, height, width = noise.shape[2:]
        stop = self._start_frame + (frames - 1) * FRAME_STRIDE + 1
        segment = Segment(self._start_frame, stop, keep=slice(None))
        # The model fills odd latents up to whole tokens.
        size = Size(*(-(-side // 2) * TOKEN_PIXELS for side in (height, width)))
        return Audio(self._speech.windows(segment), self._masks_at(size))


@dataclass(frozen=True, kw_only=True, slots=True)
class _Run:
    """What one call of the sampler remembers.

    Attributes:
        schedule: The timesteps, copied: `uni_pc` writes into its sigmas.
        guidance: One for each latent of the batch.
        cache: What the model said last.
    """

    schedule: list[float]
    guidance: list[Guidance]
    cache: StepCache

    def combine(self, passes: Sequence[Pass], velocities: Sequence[Tensor]) -> Tensor:
        """Guide each latent of the batch by its own guidance; APG keeps a running average."""
        rows = zip(self.guidance, *(one.chunk(len(one)) for one in velocities), strict=True)
        return torch.cat([guidance.combine(passes, row) for guidance, *row in rows])
