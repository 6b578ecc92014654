"""What a segment is told about the picture: channels, motion latents, and the order of noise."""

from __future__ import annotations

import pytest
import torch
from torch import Generator, Tensor

from comfyui_multitalk.multitalk_core.method.conditioning import (
    Condition,
    Motion,
    condition_segment,
    encode_known,
)
from comfyui_multitalk.multitalk_core.method.segments import Segment
from comfyui_multitalk.tests.support.stand_ins import MeanImageEncoder, MeanVAE


def seeded() -> Generator:
    return torch.Generator().manual_seed(4)


def picture() -> Tensor:
    return torch.rand(1, 3, 1, 16, 32, generator=seeded()) * 2 - 1


def condition(method: str, *, later: bool) -> Condition:
    frames = torch.rand(1, 3, 5, 16, 32, generator=seeded()) * 2 - 1
    return condition_segment(
        Segment(4, 13, slice(5, 9)) if later else Segment(0, 9, slice(0, 9)),
        method=method,
        picture=picture(),
        motion_frames=frames if later else None,
        vae=MeanVAE(),
        image_encoder=MeanImageEncoder(8),
    )


@pytest.mark.parametrize(("num_known", "known_latents"), [(1, 1), (5, 2), (9, 3)])
def test_encode_known_marks_known_latents(num_known: int, known_latents: int) -> None:
    known = picture().expand(-1, -1, num_known, -1, -1)
    latents, mask = encode_known(MeanVAE(), known, num_frames=13)
    assert (latents.shape, mask.shape) == ((1, 16, 4, 2, 4), (1, 4, 4, 2, 4))
    assert bool((mask[:, :, :known_latents] == 1).all())
    assert not mask[:, :, known_latents:].any()
    assert not latents[:, :, known_latents:].any()  # grey after the known frames


@pytest.mark.parametrize(
    ("method", "later", "known_latents"),
    [
        ("multitalk", False, 1),
        ("multitalk", True, 2),
        ("infinitetalk", False, 1),
        ("infinitetalk", True, 1),
        ("flashtalk", False, 1),
        ("flashtalk", True, 1),
    ],
)
def test_condition_known_frames_by_method(method: str, later: bool, known_latents: int) -> None:
    mask = condition(method, later=later).mask[0, 0, :, 0, 0]
    assert mask.tolist() == [1.0] * known_latents + [0.0] * (3 - known_latents)


def test_condition_motion_by_method() -> None:
    assert condition("multitalk", later=False).motion is None
    for method, later, num_latents in (
        ("multitalk", True, 2),
        ("infinitetalk", False, 1),
        ("infinitetalk", True, 2),
        ("flashtalk", False, 1),
        ("flashtalk", True, 2),
    ):
        motion = condition(method, later=later).motion
        assert motion is not None
        assert motion.latents.shape == (1, 16, num_latents, 2, 4)
        assert motion.clean == (method != "multitalk")
        assert motion.draws == (later and method != "flashtalk")


def test_motion_multitalk_is_noised_anew_each_time() -> None:
    clean, latents = torch.ones(1, 16, 2, 2, 4), torch.zeros(1, 16, 3, 2, 4)
    generator, reference = seeded(), seeded()
    motion = Motion(clean, clean=False, draws=True)
    for timestep in (1000.0, 250.0, 0.0):
        injected = motion.inject(latents, timestep=timestep, generator=generator)
        noise = torch.randn(clean.shape, generator=reference)
        level = timestep / 1000
        torch.testing.assert_close(injected[:, :, :2], (1 - level) * clean + level * noise)
        assert not injected[:, :, 2:].any()
    assert not latents.any()


@pytest.mark.parametrize("draws", [False, True])
def test_motion_infinitetalk_stays_clean_and_draws_as_upstream(draws: bool) -> None:
    clean, latents = torch.ones(1, 16, 2, 2, 4), torch.zeros(1, 16, 3, 2, 4)
    generator, reference = seeded(), seeded()
    motion = Motion(clean, clean=True, draws=draws)
    assert torch.equal(motion.inject(latents, timestep=700.0, generator=generator)[:, :, :2], clean)
    if draws:
        torch.randn(clean.shape, generator=reference)
    assert torch.equal(torch.randn(3, generator=generator), torch.randn(3, generator=reference))
