"""The mouth measure reads the drawn opening back from pixels."""

from __future__ import annotations

import statistics
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from comfyui_multitalk.dev.train_tiny.drawing import boxes, render
from comfyui_multitalk.dev.train_tiny.faces import sample_faces
from comfyui_multitalk.dev.train_tiny.motion import sample_motion
from comfyui_multitalk.dev.train_tiny.mouth import correlation, opening

SIZE = (128, 128)
NUM_CLIPS = 8


@pytest.fixture(scope="module")
def clips() -> tuple[Tensor, Tensor, Tensor]:
    """Give pictures in [0, 1], mouth boxes and true openings of talking faces."""
    generator = torch.Generator().manual_seed(11)
    faces = sample_faces(NUM_CLIPS, generator=generator)
    motion = sample_motion(NUM_CLIPS, frames=25, generator=generator)
    pictures = (render(faces, motion, size=SIZE) + 1) / 2
    mouths = boxes(faces, motion, size=SIZE).mouths[:, 0]
    return pictures, mouths, motion.articulation[:, 0, :, 0]


def test_opening_follows_the_drawn_mouth(clips: tuple[Tensor, Tensor, Tensor]) -> None:
    found = [correlation(opening(one, box), true) for one, box, true in zip(*clips, strict=True)]
    assert statistics.median(found) > 0.995
    assert min(found) > 0.97


def test_opening_follows_with_a_box_that_stays(clips: tuple[Tensor, Tensor, Tensor]) -> None:
    found = [
        correlation(opening(one, box.mean(dim=0)), true)
        for one, box, true in zip(*clips, strict=True)
    ]
    assert statistics.median(found) > 0.995


def test_opening_of_shuffled_frames_follows_no_more(clips: tuple[Tensor, Tensor, Tensor]) -> None:
    order = torch.randperm(25, generator=torch.Generator().manual_seed(12))
    found = [
        correlation(opening(one[:, order], box), true)
        for one, box, true in zip(*clips, strict=True)
    ]
    assert statistics.median(found) < 0.5


def test_opening_reads_frames_with_channels_last_alike(
    clips: tuple[Tensor, Tensor, Tensor],
) -> None:
    one, box = clips[0][0], clips[1][0]
    torch.testing.assert_close(opening(one.permute(1, 2, 3, 0), box), opening(one, box))


def test_opening_of_a_shut_mouth_is_nearly_nothing() -> None:
    generator = torch.Generator().manual_seed(13)
    faces = sample_faces(16, generator=generator)
    motion = sample_motion(16, frames=1, generator=generator)
    for drawn, low, high in ((0.0, 0.0, 0.04), (1.0, 0.4, 0.6)):
        held = replace(motion, articulation=torch.tensor([drawn, 0.0]).expand(16, 1, 1, 2))
        pictures = (render(faces, held, size=SIZE) + 1) / 2
        mouths = boxes(faces, held, size=SIZE).mouths[:, 0]
        for one, box in zip(pictures, mouths, strict=True):
            assert low <= float(opening(one, box)) <= high


def test_correlation_of_a_still_curve_is_nothing() -> None:
    ramp = torch.linspace(0, 1, 9)
    assert correlation(ramp, 3 * ramp + 1) == pytest.approx(1)
    assert correlation(ramp, -ramp) == pytest.approx(-1)
    assert correlation(ramp, torch.ones(9)) == 0
