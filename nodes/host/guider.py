"""GUIDER: upstream's guidance by text and by audio over ComfyUI's own calls of the model.

The passes of a step are conditionings to ComfyUI, which batches them as memory allows and applies
hooks, patches and context windows. Formulas are core's. Departure from `CFGGuider`: a patch that
replaces the formula of the guidance has no place here, for there are two scales.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import comfy.conds
import comfy.samplers
import torch
from torch import Tensor

from ...multitalk_core.config import SamplingConfig
from ...multitalk_core.errors import InputError
from ...multitalk_core.geometry import FRAME_STRIDE, TOKEN_PIXELS, Size
from ...multitalk_core.method.conditioning import Motion
from ...multitalk_core.method.guidance import Guidance, Pass, passes_of_run
from ...multitalk_core.method.sampler import silent
from ...multitalk_core.method.schedule import NUM_TIMESTEPS, moment
from ...multitalk_core.method.step_cache import StepCache

_NAMES = ("positive", "negative", "unconditional", "without_audio")
"""ComfyUI's names of the passes; some patches look for the first two."""

_LATENT_CHANNELS = 16

_log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True, slots=True)
class SegmentVoices:
    """What one segment hears, asked for when its size is known.

    Attributes:
        windows: From the number of video frames to audio features, `(S, T, 5, L, C)`.
        token_masks: From the video's size in pixels to where each speaker is on the token grid,
            `(S + 1, N)`; `None` for a single speaker.
    """

    windows: Callable[[int], Tensor]
    token_masks: Callable[[Size], Tensor | None]


@dataclass(frozen=True, kw_only=True, slots=True)
class Held:
    """Motion latents that stand in the latents whenever the model is called.

    Attributes:
        motion: The frames taken over from the segment before.
        noise: Of the whole segment, `(1, 16, F, h, w)`. One noise at all levels, as ComfyUI's own
            inpainting has it: samplers of higher order need a model that does not jump.
    """

    motion: Motion
    noise: Tensor

    def put(self, latents: Tensor, *, sigma: float) -> Tensor:
        """Give `latents` with the frames in place at noise level `sigma`, 0 to 1."""
        noise = self.noise[:, :, : self.motion.num_frames]
        return self.motion.hold(latents, timestep=sigma * NUM_TIMESTEPS, noise=noise)


class VoicesCond(comfy.conds.CONDRegular):
    """The audio tokens of a pass; passes with other numbers of speakers share a batch all the same.

    ComfyUI batches conditionings that can be concatenated. These become one list, an entry for each
    of the batch, which core's model takes.
    """

    def can_concat(self, other: Any) -> bool:
        return isinstance(other, VoicesCond)

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
        voices: SegmentVoices,
        config: SamplingConfig,
        held: Held | None = None,
        held_frames: int = 0,
    ) -> None:
        """Plan the passes.

        Args:
            model: A MODEL of ours that can hear.
            voices: What is said.
            config: Guidance, strength and step cache; the rest is the sampler's.
            held: Frames that stand at every call of the model.
            held_frames: Latent frames at the start that `held` or the sampler puts back.
        """
        super().__init__(model)
        self._voices = voices
        self._config = config
        self._held = held
        self._held_frames = held_frames
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
        """Sample as ComfyUI does; the model is loaded by now, so it can hear the voices."""
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
        self._tell_voices(noise)
        self._run = _Run(
            schedule=[float(sigma) * NUM_TIMESTEPS for sigma in sigmas],
            guidance=[Guidance(self._config) for _ in range(noise.shape[0])],
            cache=StepCache(self._config.step_cache, held_frames=self._held_frames),
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
        if self._held is not None:
            x = self._held.put(x, sigma=float(timestep[0]))
        now = moment(float(timestep[0]) * NUM_TIMESTEPS, run.schedule)
        passes = run.guidance[0].passes(now.done)
        conds = [self.conds[self._names[which]] for which in passes]
        known = {"model": self.inner_model, "sigma": timestep, "model_options": model_options}
        sigma = timestep.view(-1, 1, 1, 1, 1)
        velocities = run.cache.reuse(x, now, passes)
        if velocities is None:
            clean = self._ask(x, timestep, conds, known)
            run.cache.keep(x, passes, [(x - one) / sigma for one in clean])
        else:
            clean = [x - sigma * one for one in velocities]
        known |= {"cond_scale": self.cfg, "timestep": timestep, "input": x}
        for change in model_options.get("sampler_pre_cfg_function", ()):
            clean = change({"conds": conds, "conds_out": clean, **known})
        guided = self._combine(x, passes, clean, timestep)
        for change in model_options.get("sampler_post_cfg_function", ()):
            guided = change(
                {
                    "denoised": guided,
                    "cond": conds[0],
                    "uncond": conds[-1],
                    "cond_denoised": clean[0],
                    "uncond_denoised": clean[-1],
                    **known,
                }
            )
        return guided if self._held is None else self._held.put(guided, sigma=0.0)

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

    def _tell_voices(self, noise: Tensor) -> None:
        """Put the voices into the passes' conditionings."""
        frames, height, width = noise.shape[2:]
        net = self.inner_model.diffusion_model
        windows = self._voices.windows((frames - 1) * FRAME_STRIDE + 1)
        windows = windows.to(noise.device, self.inner_model.get_dtype_inference())
        voiced, silence = net.project_audio(windows), net.project_audio(silent(windows))
        shared = {"audio_strength": comfy.conds.CONDConstant(self._config.audio_strength)}
        masks = self._voices.token_masks(_size(height, width))
        if masks is not None:
            shared["token_masks"] = comfy.conds.CONDConstant(masks.to(noise.device))
        for name, which in self._passes.items():
            audio = VoicesCond(voiced if which.voice else silence)
            for cond in self.conds[name]:
                cond["model_conds"] = {**cond["model_conds"], **shared, "audio": audio}

    def _combine(
        self, x: Tensor, passes: Sequence[Pass], clean: list[Tensor], timestep: Tensor
    ) -> Tensor:
        """Guide: the plain formula holds for clean latents as for velocities; APG's does not."""
        assert self._run is not None
        guidance = self._run.guidance
        if self._config.apg is None:
            return guidance[0].combine(passes, clean)
        sigma = timestep.view(-1, 1, 1, 1, 1)
        velocities = [((x - one) / sigma).chunk(x.shape[0]) for one in clean]
        guided = [one.combine(passes, row) for one, *row in zip(guidance, *velocities, strict=True)]
        return x - sigma * torch.cat(guided)


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


def _size(height: int, width: int) -> Size:
    """Give the video's size; the model fills odd latents up to whole tokens."""
    return Size(*(-(-side // 2) * TOKEN_PIXELS for side in (height, width)))
