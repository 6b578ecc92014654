"""Guidance: the passes a pair of scales needs, and the sums."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from comfyui_multitalk.multitalk_core.config import ApgConfig, SamplingConfig
from comfyui_multitalk.multitalk_core.guidance import (
    FULL,
    UNCONDITIONAL,
    WITHOUT_AUDIO,
    WITHOUT_TEXT,
    Guidance,
    Projection,
    passes_needed,
)


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
        [full, without_text, unconditional]
    )
    expected = unconditional + 5.0 * (full - without_text) + 4.0 * (without_text - unconditional)
    torch.testing.assert_close(guided, expected)


def test_guidance_audio_scale_of_one_equals_the_three_pass_sum() -> None:
    full, without_text, unconditional = velocities(3)
    guided = Guidance(SamplingConfig(text_guidance=5.0, audio_guidance=1.0)).combine(
        [full, without_text]
    )
    expected = unconditional + 5.0 * (full - without_text) + 1.0 * (without_text - unconditional)
    torch.testing.assert_close(guided, expected)


def test_guidance_text_scale_of_one_follows_the_formula() -> None:
    full, without_audio = velocities(2)
    guided = Guidance(SamplingConfig(text_guidance=1.0, audio_guidance=4.0)).combine(
        [full, without_audio]
    )
    torch.testing.assert_close(guided, without_audio + 4.0 * (full - without_audio))


def test_guidance_both_scales_one_is_the_prediction_itself() -> None:
    (full,) = velocities(1)
    for apg in (None, ApgConfig()):
        config = SamplingConfig(text_guidance=1.0, audio_guidance=1.0, apg=apg)
        assert torch.equal(Guidance(config).combine([full]), full)


def test_guidance_apg_sums_projected_differences() -> None:
    full, without_text, unconditional = velocities(3)
    apg = ApgConfig()
    guided = Guidance(SamplingConfig(text_guidance=5.0, audio_guidance=4.0, apg=apg)).combine(
        [full, without_text, unconditional]
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
