"""Colour correction: Lab by textbook values, moments, and what stays as it is."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from comfyui_multitalk.multitalk_core.errors import InputError
from comfyui_multitalk.multitalk_core.method.color import lab_to_rgb, match_color_, rgb_to_lab
from comfyui_multitalk.tests.support.live_memory import LiveMemory


def picture(*shape: int, seed: int, low: float = -0.4, high: float = 0.4) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(shape, generator=generator) * (high - low) + low


@pytest.mark.parametrize(
    ("rgb", "lab"),
    [
        ((1.0, 1.0, 1.0), (100.0, 0.0, 0.0)),
        ((0.0, 0.0, 0.0), (0.0, 0.0, 0.0)),
        ((1.0, 0.0, 0.0), (53.24, 80.09, 67.20)),
        ((0.0, 1.0, 0.0), (87.73, -86.18, 83.18)),
        ((0.0, 0.0, 1.0), (32.30, 79.19, -107.86)),
        ((0.02, 0.02, 0.02), (1.40, 0.0, 0.0)),
    ],
)
def test_rgb_to_lab_gives_textbook_values(rgb: tuple[float, ...], lab: tuple[float, ...]) -> None:
    ours = rgb_to_lab(torch.tensor(rgb)[:, None, None])
    assert ours.flatten().tolist() == pytest.approx(lab, abs=0.02)


def test_lab_to_rgb_undoes_rgb_to_lab() -> None:
    rgb = picture(3, 9, 11, seed=1, low=0.0, high=1.0)
    assert torch.allclose(lab_to_rgb(rgb_to_lab(rgb)), rgb, atol=1e-5)


def test_match_color_gives_each_frame_the_references_moments() -> None:
    frames, reference = picture(1, 3, 2, 24, 32, seed=2), picture(1, 3, 1, 3, 3, seed=3)
    frames[:, :, 1] = frames[:, :, 1] * 0.5 + 0.2
    matched = match_color_(frames, reference * 0.5, strength=1.0)
    assert matched is frames
    target = rgb_to_lab((reference[0, :, 0] * 0.5 + 1) / 2)
    for i_frame in range(2):
        lab = rgb_to_lab((matched[0, :, i_frame] + 1) / 2)
        assert torch.allclose(lab.mean(dim=(1, 2)), target.mean(dim=(1, 2)), atol=0.02)
        assert torch.allclose(
            lab.std(dim=(1, 2), correction=0), target.std(dim=(1, 2), correction=0), atol=0.02
        )


def test_match_color_strength_blends_in_rgb() -> None:
    frames, reference = picture(1, 3, 1, 8, 8, seed=4), picture(1, 3, 1, 8, 8, seed=5)
    full = match_color_(frames.clone(), reference, strength=1.0)
    quarter = match_color_(frames.clone(), reference, strength=0.25)
    assert torch.allclose(quarter, frames + 0.25 * (full - frames), atol=1e-6)
    assert torch.equal(match_color_(frames.clone(), reference, strength=0.0), frames)


def test_match_color_flat_frame_takes_the_references_mean() -> None:
    frames = torch.full((1, 3, 1, 64, 64), 0.123)
    reference = picture(1, 3, 1, 8, 8, seed=6)
    matched = match_color_(frames, reference, strength=1.0)
    mean = rgb_to_lab((reference[0, :, 0] + 1) / 2).mean(dim=(1, 2), keepdim=True)
    expected = lab_to_rgb(mean)[:, 0, 0] * 2 - 1
    assert torch.allclose(matched[0, :, 0], expected[:, None, None].expand(3, 64, 64), atol=1e-4)


def test_match_color_keeps_dtype_and_range() -> None:
    frames = picture(1, 3, 1, 8, 8, seed=7, low=-1.2, high=1.2).bfloat16()
    matched = match_color_(frames, picture(1, 3, 1, 8, 8, seed=8, low=-1, high=1), strength=1.0)
    assert matched.dtype == torch.bfloat16
    assert float(matched.float().abs().max()) <= 1.0


def test_match_color_takes_the_memory_of_a_few_frames_beside_the_video() -> None:
    meta = torch.device("meta")
    frames = torch.empty(1, 3, 40, 64, 64, device=meta)
    reference = torch.empty(1, 3, 1, 64, 64, device=meta)
    with LiveMemory() as memory:
        match_color_(frames, reference, strength=0.5)
    assert 0 < memory.peak < frames.nbytes // 2


@pytest.mark.parametrize("strength", [-0.1, 1.1, float("nan")])
def test_match_color_strength_outside_its_range_is_refused(strength: float) -> None:
    frames = torch.zeros(1, 3, 1, 4, 4)
    with pytest.raises(InputError, match="between 0 and 1"):
        match_color_(frames, frames, strength=strength)
