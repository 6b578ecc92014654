"""Drawn people: the same seed gives the same, words name what is seen, boxes hold the mouth."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from comfyui_multitalk.dev.train_tiny.drawing import Window, boxes, render
from comfyui_multitalk.dev.train_tiny.faces import (
    BACKGROUND,
    HAIR,
    Faces,
    prompt,
    prompts,
    sample_faces,
)
from comfyui_multitalk.dev.train_tiny.motion import Motion, sample_motion

SIZE = (64, 64)
PAIR_SIZE = (64, 96)


def _scene(seed: int, *, people: int = 1, frames: int = 5) -> tuple[Faces, Motion]:
    generator = torch.Generator().manual_seed(seed)
    faces = sample_faces(2, people=people, generator=generator)
    return faces, sample_motion(2, people=people, frames=frames, generator=generator)


def test_render_same_seed_gives_the_same_frames() -> None:
    first, again, other = (render(*_scene(seed), size=SIZE) for seed in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_render_frames_are_pictures_of_the_size_asked_for() -> None:
    frames = render(*_scene(3, people=2), size=PAIR_SIZE)
    assert frames.shape == (2, 3, 5, 64, 96)
    assert frames.min() >= -1 and frames.max() <= 1
    assert frames.std() > 0.1


def test_render_window_is_that_part_of_the_whole_picture() -> None:
    faces, motion = _scene(4)
    corner = torch.tensor([[8, 24], [16, 0]])
    part = render(faces, motion, size=SIZE, window=Window(corner, 32, 40))
    whole = render(faces, motion, size=SIZE)
    torch.testing.assert_close(part[0], whole[0, :, :, 24:56, 8:48])
    torch.testing.assert_close(part[1], whole[1, :, :, 0:32, 16:56])


@pytest.mark.parametrize("who", [0, 1], ids=["left", "right"])
def test_render_mouth_moves_its_own_half_of_a_pair_only(who: int) -> None:
    faces, motion = _scene(5, people=2)
    moved = motion.articulation.clone()
    moved[:, who, :, 0] = 1 - moved[:, who, :, 0]
    before = render(faces, motion, size=PAIR_SIZE)
    after = render(faces, replace(motion, articulation=moved), size=PAIR_SIZE)
    halves = (after - before).abs().amax(dim=(1, 2, 3)).unflatten(1, (2, 48)).amax(dim=2)
    assert (halves[:, who] > 0.1).all()
    assert (halves[:, 1 - who] == 0).all()


def test_boxes_hold_the_inside_of_a_wide_open_mouth() -> None:
    faces, motion = _scene(6, people=2)
    wide = replace(motion, articulation=torch.tensor([1.0, 0.5]).expand(2, 2, 5, 2))
    pictures = (render(faces, wide, size=PAIR_SIZE) + 1) / 2
    dark_red = (pictures[:, 1] < 0.1) & (pictures[:, 0] > 0.25)
    for clip in range(2):
        for frame in range(5):
            places = boxes(faces, wide, size=PAIR_SIZE).mouths[clip, :, frame]
            inside = torch.zeros(64, 96, dtype=torch.bool)
            for left, top, right, bottom in places.round().int().tolist():
                inside[top:bottom, left:right] = True
                assert dark_red[clip, frame, top:bottom, left:right].sum() > 20
            assert not (dark_red[clip, frame] & ~inside).any()


def test_prompt_names_the_colours_that_are_seen() -> None:
    generator = torch.Generator().manual_seed(7)
    faces = sample_faces(40, people=2, generator=generator)
    for i in range(40):
        words = prompt(faces, i)
        wall = next(name for name in BACKGROUND if f"{name} wall" in words)
        seen = faces.background[i].mean(dim=0)
        assert (seen - torch.tensor(BACKGROUND[wall])).abs().max() < 0.15
        for who, part in enumerate(words.split(" and ")):
            hair = next(name for name in HAIR if f"{name} hair" in part)
            assert (faces.hair[i, who] - torch.tensor(HAIR[hair])).abs().max() < 0.05


def test_prompts_lists_every_sentence_once() -> None:
    generator = torch.Generator().manual_seed(8)
    for people in (1, 2):
        faces = sample_faces(30, people=people, generator=generator)
        said = prompts(people)
        assert len(said) == len(set(said)) == len(HAIR) ** people * len(BACKGROUND)
        assert {prompt(faces, i) for i in range(30)} <= set(said)


def test_sample_motion_moves_too_slowly_to_be_lost_between_latents() -> None:
    motion = sample_motion(64, frames=125, generator=torch.Generator().manual_seed(9))
    opening = motion.articulation[:, 0, :, 0]
    assert opening.min() >= 0 and opening.max() <= 1
    power = torch.fft.rfft(opening - opening.mean(dim=1, keepdim=True)).abs().square().sum(dim=0)
    hertz = torch.fft.rfftfreq(125, 1 / 25)
    assert power[hertz > 5].sum() < 0.06 * power.sum()
