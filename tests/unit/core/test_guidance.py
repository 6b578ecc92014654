"""Guidance: the passes a pair of scales needs, and the sums."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from comfyui_multitalk.multitalk_core.config import ApgConfig, SamplingConfig
from comfyui_multitalk.multitalk_core.errors import InputError
from comfyui_multitalk.multitalk_core.method.guidance import (
    FULL,
    UNCONDITIONAL,
    WITHOUT_AUDIO,
    WITHOUT_TEXT,
    Guidance,
    Pass,
    Projection,
    passes_needed,
    passes_of_run,
)

BOTH = (FULL, WITHOUT_TEXT, UNCONDITIONAL)


def velocities(count: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(3)
    return [torch.randn(1, 16, 2, 2, 4, generator=generator) for _ in range(count)]


@pytest.mark.parametrize(
    ("text", "audio", "passes"),
    [
        pytest.param(5.0, 4.0, (FULL, WITHOUT_TEXT, UNCONDITIONAL), id="both"),
        pytest.param(1.0, 4.0, (FULL, WITHOUT_AUDIO), id="audio-only"),
        pytest.param(5.0, 1.0, (FULL, WITHOUT_TEXT), id="text-only"),
        pytest.param(1.0, 1.0, (FULL,), id="none"),
    ],
)
def test_passes_needed_leave_out_what_has_no_weight(
    text: float, audio: float, passes: tuple[object, ...]
) -> None:
    assert passes_needed(text_guidance=text, audio_guidance=audio) == passes


def test_guidance_three_passes_follow_the_formula() -> None:
    full, without_text, unconditional = velocities(3)
    guided = Guidance(SamplingConfig(text_guidance=5.0, audio_guidance=4.0)).combine(
        BOTH, [full, without_text, unconditional]
    )
    expected = unconditional + 5.0 * (full - without_text) + 4.0 * (without_text - unconditional)
    torch.testing.assert_close(guided, expected)


def test_guidance_audio_scale_of_one_equals_the_three_pass_sum() -> None:
    full, without_text, unconditional = velocities(3)
    guided = Guidance(SamplingConfig(text_guidance=5.0, audio_guidance=1.0)).combine(
        (FULL, WITHOUT_TEXT), [full, without_text]
    )
    expected = unconditional + 5.0 * (full - without_text) + 1.0 * (without_text - unconditional)
    torch.testing.assert_close(guided, expected)


def test_guidance_text_scale_of_one_follows_the_formula() -> None:
    full, without_audio = velocities(2)
    guided = Guidance(SamplingConfig(text_guidance=1.0, audio_guidance=4.0)).combine(
        (FULL, WITHOUT_AUDIO), [full, without_audio]
    )
    torch.testing.assert_close(guided, without_audio + 4.0 * (full - without_audio))


def test_guidance_both_scales_one_is_the_prediction_itself() -> None:
    (full,) = velocities(1)
    for apg in (None, ApgConfig()):
        config = SamplingConfig(text_guidance=1.0, audio_guidance=1.0, apg=apg)
        assert torch.equal(Guidance(config).combine((FULL,), [full]), full)


def test_guidance_apg_sums_projected_differences() -> None:
    full, without_text, unconditional = velocities(3)
    apg = ApgConfig()
    guided = Guidance(SamplingConfig(text_guidance=5.0, audio_guidance=4.0, apg=apg)).combine(
        BOTH, [full, without_text, unconditional]
    )
    expected = (
        full
        + 4.0 * Projection(apg)(full - without_text, full)
        + 3.0 * Projection(apg)(without_text - unconditional, full)
    )
    torch.testing.assert_close(guided, expected)


def test_projection_stands_across_the_prediction_and_under_the_bound() -> None:
    difference, full = velocities(2)
    across = Projection(ApgConfig(norm_threshold=2.0))(difference, full)
    assert abs(float((across * full).sum())) < 1e-4
    scaled = difference * (2.0 / difference.norm())
    along = (scaled * full).sum() / full.square().sum() * full
    torch.testing.assert_close(across, scaled - along)


def test_projection_remembers_the_unbounded_differences() -> None:
    first, second, full = velocities(3)
    project = Projection(ApgConfig(momentum=-0.75, norm_threshold=2.0))
    project(first, full)
    averaged = second - 0.75 * first
    fresh = Projection(ApgConfig(norm_threshold=2.0))
    torch.testing.assert_close(project(second, full), fresh(averaged, full))


def test_projection_threshold_of_zero_bounds_nothing() -> None:
    difference, full = velocities(2)
    project = Projection(ApgConfig(norm_threshold=0.0))
    along = (difference * full).sum() / full.square().sum() * full
    torch.testing.assert_close(project(1000 * difference, full), 1000 * (difference - along))


@pytest.mark.parametrize(
    ("done", "passes"),
    [
        pytest.param(0.0, (FULL,), id="neither"),
        pytest.param(0.25, (FULL, WITHOUT_TEXT), id="text-begins"),
        pytest.param(0.49, (FULL, WITHOUT_TEXT), id="just-before-audio"),
        pytest.param(0.5, BOTH, id="audio-begins"),
        pytest.param(0.75, (FULL, WITHOUT_AUDIO), id="text-has-ended"),
        pytest.param(0.95, (FULL,), id="both-have-ended"),
    ],
)
def test_guidance_parts_of_the_steps_need_only_their_passes(
    done: float, passes: tuple[Pass, ...]
) -> None:
    config = SamplingConfig(
        text_guidance_start=0.25,
        text_guidance_end=0.75,
        audio_guidance_start=0.5,
        audio_guidance_end=0.9,
    )
    assert Guidance(config).passes(done) == passes


@pytest.mark.parametrize(
    ("parts", "passes"),
    [
        pytest.param({}, BOTH, id="everywhere"),
        pytest.param({"text_guidance_end": 0.5}, (*BOTH, WITHOUT_AUDIO), id="text-ends"),
        pytest.param(
            {"text_guidance_end": 0.5, "audio_guidance_start": 0.5},
            (FULL, WITHOUT_TEXT, WITHOUT_AUDIO),
            id="one-after-the-other",
        ),
        pytest.param({"text_guidance_end": 0.5, "audio_guidance_end": 0.5}, BOTH, id="both-end"),
        pytest.param({"text_guidance": 1.0}, (FULL, WITHOUT_AUDIO), id="no-text"),
    ],
)
def test_run_needs_the_passes_of_all_its_parts(
    parts: dict[str, float], passes: tuple[Pass, ...]
) -> None:
    assert passes_of_run(SamplingConfig(**parts)) == passes


def test_guidance_outside_a_part_equals_a_scale_of_one() -> None:
    full, other = velocities(2)
    config = SamplingConfig(text_guidance_end=0.5)
    guided = Guidance(config).combine(Guidance(config).passes(0.5), [full, other])
    torch.testing.assert_close(guided, other + 4.0 * (full - other))


def test_guidance_apg_average_stands_still_where_its_guidance_is_off() -> None:
    apg = ApgConfig()
    guidance = Guidance(SamplingConfig(text_guidance=5.0, audio_guidance=4.0, apg=apg))
    first, second, third = velocities(9)[:3], velocities(9)[3:6], velocities(9)[6:]
    guidance.combine(BOTH, first)
    guidance.combine((FULL, WITHOUT_TEXT), second[:2])
    guided = guidance.combine((FULL, WITHOUT_AUDIO), third[:2])
    audio = Projection(apg)
    audio(first[1] - first[2], first[0])
    torch.testing.assert_close(guided, third[0] + 3.0 * audio(third[0] - third[1], third[0]))
    again = guidance.combine((FULL, WITHOUT_TEXT), third[:2])
    text = Projection(apg)
    text(first[0] - first[1], first[0])
    text(second[0] - second[1], second[0])
    torch.testing.assert_close(again, third[0] + 4.0 * text(third[0] - third[1], third[0]))


@pytest.mark.parametrize("name", ["text_guidance", "audio_guidance"])
def test_guidance_part_without_steps_is_refused_with_the_fix(name: str) -> None:
    parts = {f"{name}_start": 0.5, f"{name}_end": 0.5}
    with pytest.raises(InputError, match=f"`{name}_start` is 0.5 .* Set `{name}` to 1"):
        SamplingConfig(**parts)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("text_guidance_start", -0.1),
        ("text_guidance_end", 1.1),
        ("audio_guidance_start", float("nan")),
        ("audio_guidance_end", 50.0),
        ("step_cache", -0.1),
        ("step_cache", 1.5),
    ],
)
def test_fast_mode_out_of_range_is_refused(name: str, value: float) -> None:
    with pytest.raises(InputError, match=f"`{name}` is {value}; it must lie between 0 and 1"):
        SamplingConfig(**{name: value})
