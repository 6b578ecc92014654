"""The strip says when: frames, sound and curves stand at their times."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from comfyui_multitalk.nodes.drawing.canvas import PANEL, SPEAKERS, faded
from comfyui_multitalk.nodes.drawing.strip import Curve, draw_strip

RATE = 1000
FPS = 25
WAVE = SPEAKERS[0]
FIRST_CURVE = (255, 159, 46)


def grey_frames(num_frames: int, *, height: int = 60, width: int = 60) -> Tensor:
    """Give frames of which each has a grey of its own, counting from 1."""
    greys = torch.arange(1, num_frames + 1, dtype=torch.uint8)
    return greys.view(-1, 1, 1, 1).expand(-1, height, width, 3)


def click(seconds: float, *, at: float) -> Tensor:
    """Give a sound of two channels with a short burst in the second one."""
    sound = torch.zeros(2, round(seconds * RATE))
    start = round(at * RATE)
    sound[1, start : start + 20] = 0.5
    return sound


def columns_of(picture: Tensor, color: tuple[int, int, int]) -> Tensor:
    """Give the columns in which a colour is found, about."""
    near = (picture.int() - torch.tensor(color)).abs().amax(dim=-1) < 12
    return near.any(dim=0).nonzero()[:, 0]


def draw(num_frames: int = 100, **changes: object) -> Tensor:
    seconds = num_frames / FPS
    given = {"waveform": torch.zeros(1, round(seconds * RATE)), "sample_rate": RATE, "fps": FPS}
    return draw_strip(grey_frames(num_frames), **{**given, **changes})  # type: ignore[arg-type]


@pytest.mark.parametrize("at", [0.5, 2.0, 3.5])
def test_strip_sound_of_any_channel_stands_at_its_time(at: float) -> None:
    picture = draw(waveform=click(4, at=at))
    burst = columns_of(picture, WAVE).float()
    middle = 16 + (1280 - 32) * (at + 0.01) / 4
    assert abs(float(burst.mean()) - middle) < 2
    assert len(burst) < 12
    assert len(columns_of(picture, faded(WAVE, share=0.55)))  # what the channels reach


def test_strip_sound_longer_than_the_picture_is_cut() -> None:
    long = torch.cat((torch.zeros(1, 4 * RATE), torch.ones(1, RATE)), dim=1)
    assert not len(columns_of(draw(waveform=long), WAVE))


def test_strip_frames_stand_over_their_moments() -> None:
    picture = draw(num_frames=100)
    row = picture[100, :, 0].int()
    for i_cell in range(8):
        x = 16 + (1280 - 32) * (i_cell + 0.5) / 8
        moment = 16 + (1280 - 32) * (int(row[round(x)]) - 0.5) / 100  # greys count from 1
        assert abs(moment - x) <= 13  # one frame


def test_strip_marks_point_at_the_moment_of_their_frame() -> None:
    picture = draw(num_frames=4)
    wave_row = picture[-100].int()
    lines = ((wave_row - torch.tensor(PANEL)).sum(dim=-1) > 20).nonzero()[:, 0]
    for i_frame in range(4):
        x = 16 + (1280 - 32) * (i_frame + 0.5) / 4
        assert float((lines - x).abs().min()) <= 1


def test_strip_silence_is_a_line_and_no_sound_is_said() -> None:
    silent, without = draw(), draw(waveform=None)
    assert not len(columns_of(silent, WAVE))
    assert silent.shape == without.shape
    assert not torch.equal(silent, without)


def test_strip_curve_of_ones_is_at_the_top_and_of_zeros_at_the_bottom() -> None:
    def height(value: float) -> float:
        picture = draw(curves=[Curve("", torch.full((100,), value))])[:, 600:700]
        near = (picture.int() - torch.tensor(FIRST_CURVE)).abs().amax(dim=-1) < 12
        return float(near.any(dim=1).nonzero()[:, 0].float().mean())

    assert height(0.0) - height(1.0) == pytest.approx(104, abs=2)
    assert height(2.0) == height(1.0)


def test_strip_curves_have_colours_of_their_own() -> None:
    values = torch.linspace(0, 1, 100)
    one = draw(curves=[Curve("asked", values)])
    two = draw(curves=[Curve("asked", values), Curve("heard", 1 - values)])
    assert not len(columns_of(one, (122, 217, 120)))
    assert len(columns_of(two, (122, 217, 120)))


@pytest.mark.parametrize(("height", "width"), [(60, 60), (320, 1280), (1280, 320), (1, 1)], ids=str)
@pytest.mark.parametrize("num_frames", [1, 2, 200])
def test_strip_takes_any_size_and_length(num_frames: int, height: int, width: int) -> None:
    frames = grey_frames(200, height=height, width=width)[:num_frames]
    picture = draw_strip(frames, waveform=torch.rand(6, 9), sample_rate=RATE, fps=FPS, width=900)
    assert picture.dtype == torch.uint8
    assert picture.shape[1:] == (900, 3)
    assert 250 < picture.shape[0] < 500


def test_strip_float_frames_look_as_eight_bit_ones_and_stay_unchanged() -> None:
    frames = torch.rand(10, 20, 30, 3, generator=torch.Generator().manual_seed(1))
    before = frames.clone()
    sound = {"waveform": None, "sample_rate": RATE, "fps": FPS}
    eight_bit = (frames * 255).round().to(torch.uint8)
    assert torch.equal(draw_strip(frames, **sound), draw_strip(eight_bit, **sound))  # type: ignore[arg-type]
    assert torch.equal(frames, before)
