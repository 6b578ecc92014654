"""MultiTalk Guider in ComfyUI's own sampling nodes, against the MultiTalk Sampler and core.

Latents are compared by relative norm in float32; the ways to them differ by rounding alone.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import comfy.hooks
import comfy.samplers
import pytest
import torch
from torch import Tensor

from comfyui_multitalk.multitalk_core.config import ApgConfig
from comfyui_multitalk.multitalk_core.errors import InputError
from comfyui_multitalk.nodes.host import sampling
from comfyui_multitalk.tests.host.inside.scene import distance, load_lora, with_lora
from comfyui_multitalk.tests.host.inside.talk import CONFIG, SEED, Talk, draw

ROUNDING = 1e-5
SCALES = {
    "three passes": CONFIG,
    "text alone": replace(CONFIG, audio_guidance=1.0),
    "audio alone": replace(CONFIG, text_guidance=1.0),
    "one pass": replace(CONFIG, text_guidance=1.0, audio_guidance=1.0),
    "apg": replace(CONFIG, apg=ApgConfig()),
    "half the voice": replace(CONFIG, audio_strength=0.5),
}


@pytest.fixture(scope="module")
def default(talk: Talk) -> Tensor:
    """Give the latents of one voice at the default scales."""
    return talk.guided(talk.spoken(1), CONFIG)


@pytest.mark.parametrize(
    ("scales", "speakers"),
    [*((name, 1) for name in SCALES), ("three passes", 2), ("audio alone", 2)],
)
def test_core_sampler_and_guider_give_the_same_latents(
    talk: Talk, scales: str, speakers: int
) -> None:
    spoken, config = talk.spoken(speakers), SCALES[scales]
    (core,) = talk.segments(spoken, config, talk.core())
    (sampler,) = talk.segments(spoken, config, talk.sampler())
    assert distance(sampler, core) < ROUNDING
    assert distance(talk.guided(spoken, config), sampler) < ROUNDING


@pytest.mark.parametrize("scales", [name for name in SCALES if SCALES[name] != CONFIG])
def test_every_scale_gives_other_latents(talk: Talk, default: Tensor, scales: str) -> None:
    assert distance(talk.guided(talk.spoken(1), SCALES[scales]), default) > 100 * ROUNDING


def test_guider_begins_at_the_frame_it_is_told(talk: Talk) -> None:
    whole = talk.spoken(1)
    (features,) = whole.speech.features
    features[:4] = features[4]  # a window repeats the first frame where the sound begins
    rest = replace(whole, speech=replace(whole.speech, features=(features[4:],)))
    later = talk.guided(whole, CONFIG, start_frame=4)
    assert distance(later, talk.guided(rest, CONFIG)) < ROUNDING
    assert distance(later, talk.guided(whole, CONFIG)) > 10 * ROUNDING


@pytest.mark.parametrize("speakers", [1, 2])  # silence is one stream though two speakers are two
def test_passes_of_a_step_are_one_batch(talk: Talk, speakers: int) -> None:
    batches = []

    def call(apply: Any, given: dict[str, Any]) -> Tensor:
        batches.append(sorted(given["cond_or_uncond"]))
        result: Tensor = apply(given["input"], given["timestep"], **given["c"])
        return result

    patched = talk.model.clone()
    patched.set_model_unet_function_wrapper(call)
    spoken = talk.spoken(speakers)
    assert distance(talk.guided(spoken, CONFIG, patched=patched), talk.guided(spoken, CONFIG)) == 0
    assert batches == [[0, 1, 2], [0, 1, 2]]


def test_patches_of_the_guidance_see_and_change_the_passes(talk: Talk) -> None:
    spoken = talk.spoken(1)
    full = talk.guided(spoken, SCALES["one pass"])
    after, before = talk.model.clone(), talk.model.clone()
    after.set_model_sampler_post_cfg_function(lambda given: given["cond_denoised"])
    assert distance(talk.guided(spoken, CONFIG, patched=after), full) < ROUNDING
    scales = []

    def full_alone(given: dict[str, Any]) -> list[Tensor]:
        scales.append(given["cond_scale"])
        return [given["conds_out"][0] for _ in given["conds_out"]]

    before.set_model_sampler_pre_cfg_function(full_alone)
    assert distance(talk.guided(spoken, CONFIG, patched=before), full) < ROUNDING
    assert scales == [5.0, 5.0]  # the text guidance, as `cfg` is elsewhere


def test_patch_that_replaces_the_formula_is_said_to_have_no_effect(
    talk: Talk, default: Tensor, caplog: pytest.LogCaptureFixture
) -> None:
    patched = talk.model.clone()
    patched.set_model_sampler_cfg_function(lambda given: given["cond"] * 0)
    assert distance(talk.guided(talk.spoken(1), CONFIG, patched=patched), default) == 0
    assert "no effect" in caplog.text


def test_combined_prompts_and_batches_work_as_in_comfyui(talk: Talk) -> None:
    positive, negative, _ = talk.conditioning()
    spoken = talk.spoken(1)

    def run(prompt: Any, *, batch: int = 1) -> Tensor:
        samples: Tensor = talk.guider(spoken, CONFIG, prompt, negative).sample(
            draw(1, 16, 3, 4, 6, seed=SEED).expand(batch, -1, -1, -1, -1),
            torch.zeros(batch, 16, 3, 4, 6),
            comfy.samplers.sampler_object("euler"),
            sampling.upstream_sigmas(2, shift=7.0),
            disable_pbar=True,
            seed=SEED,
        )
        return samples

    plain = run(positive)
    tokens, told = positive[0]
    other = talk.prompts[1][0][0]
    early = [[tokens, {**told, "end_percent": 0.01}], [other, {**told, "start_percent": 0.01}]]
    assert torch.equal(run(positive), plain)
    assert distance(run([*positive, *positive]), plain) < ROUNDING
    assert distance(run(positive, batch=2)[1:], plain) < ROUNDING
    assert distance(run(early), plain) > 10 * ROUNDING


def test_lora_hooked_to_the_prompts_is_the_lora_in_the_model(
    talk: Talk, default: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    spoken = talk.spoken(1)
    expected = talk.guided(spoken, CONFIG, patched=with_lora(talk.model))
    assert distance(default, expected) > 0.01
    told = {"hooks": comfy.hooks.create_hook_lora(load_lora(), 1.0, 0.0)}
    sampler = talk.sampler(positive=told, negative=told)
    (sampler,) = talk.segments(spoken, CONFIG, sampler)
    assert distance(sampler, expected) < ROUNDING
    hooked = [[[tokens, {**rest, **told}]] for ((tokens, rest),) in talk.prompts]
    monkeypatch.setattr(talk, "prompts", hooked)
    assert distance(talk.guided(spoken, CONFIG), expected) < ROUNDING


@pytest.mark.parametrize(
    ("speakers", "changes", "said"),
    [
        (1, {"patched": "base"}, "Put Load MultiTalk Adapter"),
        (1, {"negative": None}, "Connect `negative`"),
        (2, {"image": None}, "Two speakers need `image`"),
        (1, {"start_frame": 9}, "`start_frame` is 9, but the sound has 9 frames"),
    ],
    ids=["base", "no negative", "no photo", "late"],
)
def test_wrong_wiring_is_said_with_the_fix(
    talk: Talk, speakers: int, changes: dict[str, Any], said: str
) -> None:
    positive, negative, _ = talk.conditioning()
    given = {"negative": negative, **changes}
    if "patched" in given:
        given["patched"] = talk.base
    with pytest.raises(InputError) as refused:
        talk.guider(talk.spoken(speakers), CONFIG, positive, **given)
    assert said in str(refused.value)


def test_latent_of_a_picture_is_refused_with_the_fix(talk: Talk) -> None:
    positive, negative, _ = talk.conditioning()
    guider = talk.guider(talk.spoken(1), CONFIG, positive, negative)
    picture, levels = torch.zeros(1, 16, 4, 6), torch.tensor([1.0, 0.0])
    with pytest.raises(InputError, match="Connect the latent of WanImageToVideo"):
        guider.sample(picture, picture, comfy.samplers.sampler_object("euler"), levels)
