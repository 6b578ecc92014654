"""The MultiTalk Sampler with ComfyUI's samplers and schedulers.

Latents are compared by relative norm in float32.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import comfy.samplers
import comfy.utils
import folder_paths
import pytest
import torch
from comfy.cli_args import LatentPreviewMethod, args
from comfy.taesd.taehv import TAEHV
from safetensors.torch import save_file
from torch import Tensor

from comfyui_multitalk.multitalk_core.config import DEFAULTS
from comfyui_multitalk.multitalk_core.method.conditioning import Motion
from comfyui_multitalk.nodes.host import sampling
from comfyui_multitalk.tests.host.inside.scene import distance
from comfyui_multitalk.tests.host.inside.talk import CONFIG, SPREAD, Talk, draw, mean_of_normal

ROUNDING = 1e-5
METHODS = ("multitalk", "infinitetalk")
LEFT_OUT = "res_multistep_ancestral"


@pytest.mark.parametrize("method", METHODS)
def test_later_segment_by_euler_gives_the_cores_latents(talk: Talk, method: str) -> None:
    spoken, config = talk.spoken(1, num_frames=13), replace(CONFIG, method=method)
    ours = talk.segments(spoken, config, talk.sampler())
    core = talk.segments(spoken, config, talk.core())
    assert len(ours) == len(core) == 2
    assert all(distance(a, b) < ROUNDING for a, b in zip(ours, core, strict=True))


def test_flashtalk_by_euler_gives_the_cores_latents(talk: Talk) -> None:
    spoken = talk.spoken(1, num_frames=13)
    config = replace(CONFIG, method="flashtalk", text_guidance=1.0, audio_guidance=1.0)
    ours = talk.segments(spoken, config, talk.sampler())
    core = talk.segments(spoken, config, talk.core())
    assert len(ours) == 2
    assert all(distance(a, b) < ROUNDING for a, b in zip(ours, core, strict=True))


@pytest.mark.parametrize(
    ("name", "scheduler"),
    [("euler", sampling.UPSTREAM), ("uni_pc", sampling.UPSTREAM), ("lcm", "simple")],
)
def test_flashtalks_schedule_is_its_own(talk: Talk, name: str, scheduler: str) -> None:
    config = DEFAULTS["flashtalk"]
    model = sampling.with_shift(talk.model, config.shift)
    sigmas = sampling.schedule(model, scheduler=scheduler, sampler_name=name, config=config)
    torch.testing.assert_close(sigmas, torch.tensor([1.0, 0.9375, 0.8333333, 0.625, 0.0]))


class Seen(NamedTuple):
    """What one sampler shows a model, and what it makes.

    Attributes:
        frames: The frames taken over, at each call.
        levels: The noise level of each call.
        steps: The steps it counts, of how many.
        latents: Of the segment.
    """

    frames: list[Tensor]
    levels: list[float]
    steps: list[tuple[int, int]]
    latents: Tensor


NOISE = draw(1, 16, 3, 4, 6, seed=31)


def watch(talk: Talk, name: str, motion: Motion, *, index: int = 1) -> Seen:
    """Sample a segment by one sampler; a cheap function stands for the transformer."""
    frames, levels, steps = [], [], []

    def call(_: Any, given: dict[str, Any]) -> Tensor:
        frames.append(given["input"][:1, :, :2])
        levels.append(float(given["timestep"][0]))
        result: Tensor = given["input"] * 0.5
        return result

    latents = talk.sample_segment(
        call,
        name,
        motion,
        noise=NOISE,
        start=4,
        index=index,
        config=replace(CONFIG, steps=4),
        on_step=lambda step, num_steps, _: steps.append((step, num_steps)),
    )
    return Seen(frames, levels, steps, latents)


def taken_over(method: str) -> Motion:
    """Draw the frames that a segment takes over from the one before."""
    return Motion(draw(1, 16, 2, 4, 6, seed=30), clean=method == "infinitetalk", draws=True)


def test_more_than_twenty_samplers_are_offered() -> None:
    assert len(sampling.SAMPLERS) > 20


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", sampling.SAMPLERS)
def test_sampler_shows_and_keeps_the_frames_taken_over(talk: Talk, name: str, method: str) -> None:
    motion = taken_over(method)
    seen = watch(talk, name, motion)
    assert seen.steps == [(step, 4) for step in range(4)]
    assert torch.equal(seen.latents[:, :, :2], motion.latents)
    assert 0 < seen.latents[:, :, 2:].std() < 100  # the new frames are numbers, not all the same
    if motion.clean:
        assert all(torch.equal(frames, motion.latents) for frames in seen.frames)
        return
    added = [
        (frames - (1 - level) * motion.latents) / max(level, 1e-9)
        for frames, level in zip(seen.frames, seen.levels, strict=True)
    ]
    # 192 numbers: their spread is 1 within a tenth or two if the level is right.
    assert all(0.8 < noise.std() < 1.2 for noise in added)
    off = max(float((noise - NOISE[:, :, :2]).abs().max()) for noise in added)
    if name == "euler":
        assert off > 1  # upstream draws anew at each step
    else:
        assert off < 1e-3


def test_what_a_sampler_draws_is_fixed_by_seed_and_segment(talk: Talk) -> None:
    motion = taken_over("infinitetalk")
    once, again, later = (
        watch(talk, "dpmpp_sde", motion, index=index).latents[:, :, 2:] for index in (1, 1, 2)
    )
    assert torch.equal(once, again)
    assert once.std() != later.std()


class Normal:
    """A model of which everything is known: its clean latents are normal around 0."""

    cfg = 1.0

    def __init__(self, levels: Any) -> None:
        self.inner_model = SimpleNamespace(model_sampling=levels)
        self.model_patcher = SimpleNamespace(
            model=self.inner_model, get_model_object=lambda _: levels
        )

    def __call__(self, x: Tensor, sigma: Tensor, **_: Any) -> Tensor:
        """Give the mean of what the clean latents may have been."""
        return mean_of_normal(x, sigma.view(-1, 1, 1, 1, 1))


@pytest.mark.parametrize("scheduler", ["multitalk", "simple", "beta"])
@pytest.mark.parametrize("name", [*sampling.SAMPLERS, LEFT_OUT])
def test_sampler_finds_the_spread_of_a_model_of_which_all_is_known(
    talk: Talk, name: str, scheduler: str
) -> None:
    config = replace(CONFIG, steps=30, shift=3.0)
    patched = sampling.with_shift(talk.model, config.shift)
    sigmas = sampling.schedule(patched, scheduler=scheduler, sampler_name=name, config=config)
    noise = draw(1, 16, 4, 8, 8, seed=40)
    known = Normal(patched.get_model_object("model_sampling"))
    sampler = comfy.samplers.sampler_object(name)
    out = sampler.sample(
        known, sigmas, {"seed": 1}, None, noise, torch.zeros_like(noise), None, True
    )
    spread = float(out.std()) / SPREAD
    if name == LEFT_OUT:
        assert spread > 1.3  # why it is left out
    elif name == "lcm":
        assert 0.5 < spread < 0.8  # it takes the mean of what may have been
    else:
        assert 0.8 < spread < 1.25


def levels(talk: Talk, scheduler: str, steps: int, sampler: str) -> list[float]:
    """Give the noise levels of a schedule."""
    config = replace(CONFIG, steps=steps)
    patched = sampling.with_shift(talk.model, config.shift)
    sigmas = sampling.schedule(patched, scheduler=scheduler, sampler_name=sampler, config=config)
    numbers: list[float] = sigmas.tolist()
    return numbers


@pytest.mark.parametrize("sampler", ["euler", "uni_pc", "lcm"])
@pytest.mark.parametrize("steps", [1, 4, 40])
@pytest.mark.parametrize("scheduler", sampling.SCHEDULERS)
def test_schedule_falls_from_pure_noise_to_none_in_as_many_steps(
    talk: Talk, scheduler: str, steps: int, sampler: str
) -> None:
    found = levels(talk, scheduler, steps, sampler)
    assert len(found) == steps + 1
    assert (found[0], found[-1]) == (1.0, 0.0)
    assert found == sorted(found, reverse=True)


def test_upstreams_schedule_is_euler_s_and_others_skip_its_last_level_but_one(talk: Talk) -> None:
    assert levels(talk, "multitalk", 4, "euler")[-2] < 0.01
    assert levels(talk, "multitalk", 4, "lcm")[-2] > 0.6
    simple = {name: levels(talk, "simple", 4, name) for name in ("euler", "lcm", "uni_pc")}
    assert simple["euler"] == simple["lcm"]
    assert simple["uni_pc"] != simple["lcm"]  # as KSampler has it


@pytest.mark.parametrize(
    ("method", "size"),
    [(LatentPreviewMethod.Latent2RGB, (6, 4)), (LatentPreviewMethod.TAESD, (48, 32))],
    ids=["latent2rgb", "small autoencoder"],
)
def test_preview_is_shown_at_every_step_finer_with_a_small_autoencoder(
    talk: Talk, monkeypatch: pytest.MonkeyPatch, method: Any, size: tuple[int, int]
) -> None:
    if method is LatentPreviewMethod.TAESD:
        folder = Path(folder_paths.base_path) / "models" / "vae_approx"
        folder.mkdir(parents=True)
        weights = TAEHV(latent_channels=16).state_dict()
        halves = {name: value.half() for name, value in weights.items()}
        save_file(halves, folder / "lighttaew2_1.safetensors")
    shown = []
    monkeypatch.setattr(
        comfy.utils, "PROGRESS_BAR_HOOK", lambda _, __, preview, **___: shown.append(preview[1])
    )
    monkeypatch.setattr(args, "preview_method", method)
    talk.segments(
        talk.spoken(1, num_frames=13),
        replace(CONFIG, text_guidance=1.0, audio_guidance=1.0),
        talk.sampler(),
        on_step=talk.session.reporter(),
    )
    assert [preview.size for preview in shown] == [size] * 4
