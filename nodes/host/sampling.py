"""Sampling a segment in ComfyUI: its samplers and schedulers, and upstream's.

All use the guider, so that changes of a MODEL by ComfyUI and other packs have an effect. Motion
frames get new noise after each step of upstream's Euler; with ComfyUI's samplers they are put into
the latents at every call of the model.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import comfy.clip_vision
import comfy.model_base
import comfy.samplers
import comfy.utils
import torch
from torch import Generator, Tensor

from ...multitalk_core.config import Method, SamplingConfig
from ...multitalk_core.method.conditioning import Motion
from ...multitalk_core.method.sampler import OnSamplerStep, SegmentInputs, euler, require_finite
from ...multitalk_core.method.schedule import NUM_TIMESTEPS, timesteps
from .guider import Audio, FixedMotion, SegmentGuider

EULER = "euler"
UPSTREAM = "multitalk"
"""The scheduler's name for upstream's schedule."""

SAMPLERS: tuple[str, ...] = (
    EULER,
    *(
        name
        for name in (
            "euler_ancestral", "heun", "heunpp2", "exp_heun_2_x0", "exp_heun_2_x0_sde", "dpm_2",
            "dpm_2_ancestral", "lms", "dpmpp_2s_ancestral", "dpmpp_sde", "dpmpp_2m", "dpmpp_2m_sde",
            "dpmpp_2m_sde_heun", "dpmpp_3m_sde", "lcm", "ipndm", "deis", "res_multistep",
            "gradient_estimation", "er_sde", "seeds_2", "seeds_3", "sa_solver", "sa_solver_pece",
            "uni_pc", "uni_pc_bh2",
        )
        if name in comfy.samplers.SAMPLER_NAMES
    ),
)  # fmt: skip
"""Samplers that work for flow models. Left out: `dpm_fast` and `dpm_adaptive` (steps of their own,
noise left at the end), `ddpm` and `res_multistep_ancestral` (add noise for diffusion models),
`ipndm_v` (unstable with uneven steps), `*_cfg_pp` (one guidance scale), `*_gpu` (the video depends
on the device), `ddim` (is Euler)."""

SCHEDULERS: tuple[str, ...] = (
    UPSTREAM,
    *(
        name
        for name in ("simple", "sgm_uniform", "beta", "linear_quadratic")
        if name in comfy.samplers.SCHEDULER_NAMES
    ),
)
"""Left out: `karras`, `exponential` and `kl_optimal` (noise levels of diffusion models, no shift),
`ddim_uniform` (does not begin at pure noise; other numbers of steps), `normal` (`sgm_uniform` with
a level near 0, after which multistep samplers overshoot)."""


def upstream_sigmas(steps: int, *, shift: float, method: Method = "multitalk") -> Tensor:
    """Give upstream's schedule as SIGMAS: `steps + 1` falling noise levels from 1 to 0."""
    levels = torch.tensor(timesteps(steps, shift=shift, method=method), dtype=torch.float64)
    return levels.div(NUM_TIMESTEPS).float()


def with_shift(model: Any, shift: float) -> Any:
    """Give a clone of a MODEL whose noise levels are shifted, as ModelSamplingSD3 does."""
    clone = model.clone()
    sampling = comfy.model_base.model_sampling(
        model.model.model_config, comfy.model_base.ModelType.FLOW
    )
    sampling.set_parameters(shift=shift)
    clone.add_object_patch("model_sampling", sampling)
    return clone


def schedule(model: Any, *, scheduler: str, sampler_name: str, config: SamplingConfig) -> Tensor:
    """Return the SIGMAS of a segment; they are new, because `uni_pc` overwrites its own.

    `model` has the shift of `config`. Upstream's schedule has a level near 0 before the end, where
    multistep samplers overshoot: a model with a known result gets 1.2 to 7 times too much spread
    with `dpmpp_2m` and its variants, `res_multistep` and `uni_pc`. All samplers but Euler skip that
    level, as ComfyUI does for some. FlashTalk's schedule has no such level.
    """
    if scheduler == UPSTREAM:
        skips = sampler_name != EULER and config.method != "flashtalk"
    else:
        skips = sampler_name in comfy.samplers.KSampler.DISCARD_PENULTIMATE_SIGMA_SAMPLERS
    steps = config.steps + skips
    if scheduler == UPSTREAM:
        sigmas = upstream_sigmas(steps, shift=config.shift, method=config.method)
    else:
        sigmas = comfy.samplers.calculate_sigmas(
            model.get_model_object("model_sampling"), scheduler, steps
        )
    return torch.cat([sigmas[:-2], sigmas[-1:]]) if skips else sigmas


class HostSampler:
    """Core's `SegmentSampler`, made of ComfyUI's samplers."""

    def __init__(
        self,
        model: Any,
        *,
        positive: dict[str, Any],
        negative: dict[str, Any],
        sampler_name: str,
        scheduler: str,
        seed: int,
    ) -> None:
        """Store a MODEL of ours with audio layers and the settings.

        `positive` and `negative` are the options of the CONDITIONINGs, such as hooks; `seed` is
        for the noise of SDE samplers, which differs in each segment.
        """
        self._model = model
        self._shifted: dict[float, Any] = {}  # one clone for all segments, so that it stays loaded
        self._options = (positive, negative)
        self._sampler_name = sampler_name
        self._scheduler = scheduler
        self._seed = seed

    def sample(self, noise: Tensor, inputs: SegmentInputs) -> Tensor:
        """Sample a segment; see `SegmentSampler`."""
        config, motion = inputs.config, inputs.condition.motion
        own = self._sampler_name == EULER
        if config.shift not in self._shifted:
            self._shifted = {config.shift: with_shift(self._model, config.shift)}
        model = self._shifted[config.shift]
        guider = SegmentGuider(
            model,
            audio=Audio(inputs.windows, inputs.token_masks),
            config=config,
            fixed=None if own or motion is None else FixedMotion(motion=motion, noise=noise),
            fixed_frames=0 if motion is None else motion.num_frames,
        )
        guider.set_conds(*self._conditioning(inputs))
        samples = guider.sample(
            noise,
            torch.zeros_like(noise),
            UpstreamEuler(motion, inputs.generator, renoised=config.method == "flashtalk")
            if own
            else comfy.samplers.sampler_object(self._sampler_name),
            schedule(
                model, scheduler=self._scheduler, sampler_name=self._sampler_name, config=config
            ),
            callback=_callback(inputs.on_step),
            disable_pbar=not comfy.utils.PROGRESS_BAR_ENABLED,
            seed=(self._seed + inputs.index) % 2**63,
        )
        latents: Tensor = self._model.model.process_latent_in(samples.to(noise.device))
        if motion is not None:
            latents = motion.put(latents, timestep=0.0, noise=None)
        require_finite(latents, what="The latents")
        return latents

    def _conditioning(self, inputs: SegmentInputs) -> tuple[list[Any], list[Any] | None]:
        """Give both CONDITIONINGs, with the picture as WanImageToVideo adds it."""
        condition = inputs.condition
        seen = comfy.clip_vision.Output()
        seen["penultimate_hidden_states"] = condition.image
        picture = {
            "concat_latent_image": self._model.model.process_latent_out(condition.known),
            "concat_mask": 1 - condition.mask,
            "clip_vision_output": seen,
        }
        positive, negative = (
            None if tokens is None else [[tokens, {**options, **picture}]]
            for tokens, options in zip(inputs.text, self._options, strict=True)
        )
        assert positive is not None
        return positive, negative


class UpstreamEuler(comfy.samplers.Sampler):
    """Core's Euler steps as a SAMPLER, with upstream's treatment of the motion latents."""

    def __init__(self, motion: Motion | None, generator: Generator, *, renoised: bool) -> None:
        self._motion = motion
        self._generator = generator
        self._renoised = renoised

    def sample(
        self,
        model_wrap: Any,
        sigmas: Tensor,
        extra_args: dict[str, Any],
        callback: Callable[[int, Tensor, Tensor, int], None],
        noise: Tensor,
        latent_image: Tensor | None = None,
        denoise_mask: Tensor | None = None,
        disable_pbar: bool = False,
    ) -> Tensor:
        """Sample from pure noise, as ComfyUI calls it; `latent_image` and the mask are unused."""

        def velocity(latents: Tensor, timestep: float) -> Tensor:
            sigma = latents.new_full((latents.shape[0],), timestep / NUM_TIMESTEPS)
            clean: Tensor = model_wrap(latents, sigma, **extra_args)
            return (latents - clean) / sigma.view(-1, 1, 1, 1, 1)

        return euler(
            noise,
            velocity,
            schedule=[float(sigma) * NUM_TIMESTEPS for sigma in sigmas],
            motion=self._motion,
            renoised=self._renoised,
            generator=self._generator,
            on_step=lambda step, num_steps, clean: callback(step, clean, clean, num_steps),
        )


def _callback(on_step: OnSamplerStep) -> Callable[[int, Tensor, Tensor, int], None]:
    def report(step: int, clean: Tensor, _: Tensor, num_steps: int) -> None:
        require_finite(clean, what=f"The latents of step {step + 1} of {num_steps}")
        on_step(step, num_steps, clean)

    return report
