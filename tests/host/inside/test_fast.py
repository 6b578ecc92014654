"""Fast modes in ComfyUI: the same latents as core's, and fewer calls of the model.

Latents are compared by relative norm in float32.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from torch import Tensor

from comfyui_multitalk.multitalk_core.config import ApgConfig, SamplingConfig
from comfyui_multitalk.multitalk_core.method.conditioning import Motion
from comfyui_multitalk.tests.host.inside.scene import distance
from comfyui_multitalk.tests.host.inside.talk import (
    CONFIG,
    SPREAD,
    Core,
    Talk,
    draw,
    mean_of_normal,
)

ROUNDING = 1e-5
SLOW = replace(CONFIG, steps=8)
MODES: dict[str, dict[str, Any]] = {
    "parts": {"text_guidance_end": 0.5, "audio_guidance_start": 0.25},
    "parts, apg": {"text_guidance_start": 0.25, "audio_guidance_end": 0.5, "apg": ApgConfig()},
    "cache": {"step_cache": 0.9},
    "cache, apg": {"step_cache": 0.9, "apg": ApgConfig()},
    "cache, one pass": {"step_cache": 0.9, "text_guidance": 1.0, "audio_guidance": 1.0},
    "both": {"step_cache": 0.9, "text_guidance_end": 0.5, "audio_guidance_end": 0.5},
}
CALM = ("euler", "heun", "dpm_2", "dpmpp_2m", "res_multistep", "uni_pc")
NOISY = ("euler_ancestral", "lcm", "dpmpp_2m_sde", "er_sde")


@pytest.mark.parametrize("mode", MODES)
def test_fast_mode_in_comfyui_gives_the_cores_latents(talk: Talk, mode: str) -> None:
    config = replace(SLOW, **MODES[mode])
    slow = replace(config, step_cache=0.0)
    if mode.startswith("parts"):
        slow = replace(SLOW, apg=config.apg)
    spoken = talk.spoken(1, num_frames=13)
    net = Core(talk.session.transformer)
    core = talk.segments(spoken, config, talk.core(net))
    ours = talk.segments(spoken, config, talk.sampler())
    assert len(ours) == 2  # the second has frames that are noised anew
    assert all(distance(a, b) < ROUNDING for a, b in zip(ours, core, strict=True))
    assert distance(core[0], talk.segments(spoken, slow, talk.core())[0]) > 100 * ROUNDING
    alone = talk.spoken(1)
    (sampler,) = talk.segments(alone, config, talk.sampler())
    guided, batches = count_passes(talk, config)
    assert distance(guided, sampler) < ROUNDING
    if mode.startswith("parts"):
        assert batches == [2, 2, 3, 3, 2, 2, 2, 2]
    else:
        assert 3 <= len(set(net.called)) < 8
        assert 3 <= len(batches) < 8


def count_passes(talk: Talk, config: SamplingConfig) -> tuple[Tensor, list[int]]:
    """Run the guider; give the latents, and the number of passes in each call of the model."""
    sizes = []

    def call(apply: Any, given: dict[str, Any]) -> Tensor:
        sizes.append(len(given["cond_or_uncond"]))
        result: Tensor = apply(given["input"], given["timestep"], **given["c"])
        return result

    patched = talk.model.clone()
    patched.set_model_unet_function_wrapper(call)
    return talk.guided(talk.spoken(1), config, patched=patched), sizes


def sample_known(talk: Talk, name: str, threshold: float) -> tuple[Tensor, int]:
    """Sample a model whose clean latents are normal; give the latents and the number of calls."""
    calls = []

    def call(_: Any, given: dict[str, Any]) -> Tensor:
        calls.append(float(given["timestep"][0]))
        return mean_of_normal(given["input"], calls[-1])

    config = replace(
        CONFIG, steps=30, shift=3.0, text_guidance=1.0, audio_guidance=1.0, step_cache=threshold
    )
    motion = Motion(draw(1, 16, 2, 8, 8, seed=30) * SPREAD, clean=False, draws=True)
    noise = draw(1, 16, 6, 8, 8, seed=31)
    return talk.sample_segment(call, name, motion, noise=noise, config=config), len(calls)


@pytest.mark.parametrize("name", CALM)
def test_step_cache_saves_calls_and_stays_near_with_samplers_that_add_no_noise(
    talk: Talk, name: str
) -> None:
    plain, every = sample_known(talk, name, 0.0)
    quick, some = sample_known(talk, name, 0.1)
    assert some < 0.5 * every
    assert 0 < distance(quick, plain) < 0.15
    assert 0.8 < float(quick[:, :, 2:].std()) / SPREAD < 1.25


@pytest.mark.parametrize("name", NOISY)
def test_step_cache_runs_every_step_where_the_sampler_adds_noise(talk: Talk, name: str) -> None:
    plain, every = sample_known(talk, name, 0.0)
    quick, some = sample_known(talk, name, 0.1)
    assert some == every
    assert distance(quick, plain) == 0
