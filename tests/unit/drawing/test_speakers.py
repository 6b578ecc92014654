"""Who is where: each speaker's colour is on the right place and at the right time."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from comfyui_multitalk.nodes.drawing.canvas import SPEAKERS
from comfyui_multitalk.nodes.drawing.speakers import Lane, draw_speakers
from comfyui_multitalk.nodes.drawing.timeline import clock

RATE = 1000
PHOTO = torch.full((100, 200, 3), 128, dtype=torch.uint8)
LEFT = torch.zeros(100, 200, dtype=torch.bool)
LEFT[20:80, 20:80] = True
RIGHT = LEFT.flip(1)
SCALE = 992 / 200
"""Pixels of the picture per pixel of the photo."""


def voice(start: float, stop: float, *, seconds: float = 4.0) -> Lane:
    track = torch.zeros(round(seconds * RATE))
    track[round(start * RATE) : round(stop * RATE)] = 0.3
    return Lane(track, start, stop)


def draw(masks: list[Tensor], lanes: list[Lane]) -> Tensor:
    return draw_speakers(
        PHOTO, masks=torch.stack(masks), lanes=lanes, sample_rate=RATE, seconds=4.0
    )


def at(picture: Tensor, x: float, y: float) -> Tensor:
    """Give the colour at a place of the photo."""
    return picture[round(16 + y * SCALE), round(16 + x * SCALE)].int()


def columns_of(picture: Tensor, number: int) -> Tensor:
    """Give the columns under the photo in which a speaker's colour is found, without the dot."""
    below = picture[round(32 + 100 * SCALE) :].int()
    near = (below - torch.tensor(SPEAKERS[number - 1])).abs().amax(dim=-1) < 12
    return near.sum(dim=0).gt(20).nonzero()[:, 0]


def test_speakers_places_are_tinted_and_the_rest_is_darker() -> None:
    picture = draw([LEFT, RIGHT], [voice(0, 2), voice(2, 4)])
    for number, x in ((1, 50), (2, 150)):
        shift = at(picture, x, 50) - 128
        assert torch.equal(shift.sign(), (torch.tensor(SPEAKERS[number - 1]) - 128).sign().int())
    assert bool((at(picture, 100, 50) < 70).all())


def test_speakers_places_have_an_edge_in_full_colour() -> None:
    picture = draw([LEFT, RIGHT], [voice(0, 2), voice(2, 4)])
    for number, x in ((1, 79.5), (2, 179.5)):
        edge = at(picture, x, 50)
        assert int((edge - torch.tensor(SPEAKERS[number - 1])).abs().max()) < 12


def test_speakers_numbers_follow_the_order_of_the_masks() -> None:
    voices = [voice(0, 2), voice(2, 4)]
    picture, swapped = draw([LEFT, RIGHT], voices), draw([RIGHT, LEFT], voices)
    assert torch.equal(at(picture, 50, 50), at(swapped, 150, 50))
    assert not torch.equal(at(picture, 50, 50), at(swapped, 50, 50))


def test_speakers_voices_stand_at_their_times() -> None:
    picture = draw([LEFT, RIGHT], [voice(0.5, 1.5), voice(2, 4)])
    for number, start, stop in ((1, 0.5, 1.5), (2, 2, 4)):
        columns = columns_of(picture, number)
        assert abs(int(columns.min()) - (16 + 992 * start / 4)) < 3
        assert abs(int(columns.max()) - (16 + 992 * stop / 4)) < 3


def test_speakers_one_alone_is_the_whole_untinted_photo() -> None:
    picture = draw([torch.ones(100, 200, dtype=torch.bool)], [voice(0, 4)])
    assert at(picture, 100, 50).tolist() == [128, 128, 128]
    assert int((at(picture, 0.5, 50) - torch.tensor(SPEAKERS[0])).abs().max()) < 12


def test_speakers_mask_of_one_pixel_is_seen() -> None:
    dot = torch.zeros(100, 200, dtype=torch.bool)
    dot[50, 60] = True
    picture = draw([dot, RIGHT], [voice(0, 2), voice(2, 4)])
    assert int((at(picture, 60.5, 50.5) - torch.tensor(SPEAKERS[0])).abs().max()) < 60


def test_speakers_photo_of_any_shape_fits() -> None:
    for height, width in ((2000, 100), (100, 2000), (1, 1)):
        photo = torch.zeros(height, width, 3, dtype=torch.uint8)
        mask = torch.ones(1, height, width, dtype=torch.bool)
        picture = draw_speakers(
            photo, masks=mask, lanes=[voice(0, 4)], sample_rate=RATE, seconds=4.0
        )
        assert picture.shape[1:] == (1024, 3)
        assert picture.shape[0] < 1000


@pytest.mark.parametrize(
    ("seconds", "step", "text"),
    [
        (1.24, 0.01, "1.24 s"),
        (0.5, 0.5, "0.5 s"),
        (59, 1, "59 s"),
        (125, 5, "2:05"),
        (3600, 60, "60:00"),
        (83.21, 0.01, "83.21 s"),
    ],
)
def test_clock_is_as_short_as_the_step_allows(seconds: float, step: float, text: str) -> None:
    assert clock(seconds, step=step) == text
