"""Speaker preview: each speaker's mask over the photo, and when each voice is heard."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from .canvas import BACKGROUND, OVERSAMPLING, SPEAKERS, Canvas, Color
from .timeline import AXIS_HEIGHT, TimeAxis, clock, draw_axis, draw_panel, draw_waveform

_MARGIN = 16
_GAP = 8
_WIDTH = 1024
_PHOTO_HEIGHT = 720
_LABEL = 26
_LANE = 64
_BADGE = 22
_TINT = 0.2
"""Opacity of the speaker's colour over the photo."""
_DIM = 0.45
"""Brightness of the photo outside all masks, as a share of the original."""
_OUTLINE = 3
"""Half the width of a mask's outline, in pixels."""


class _Place(NamedTuple):
    x: int
    y: int


class Lane(NamedTuple):
    """One speaker's voice over time."""

    track: Tensor
    """`(N,)` in [-1, 1] from the video's first frame on, silent where the speaker is."""
    start: float
    """When the recording begins, in seconds."""
    stop: float
    """When it ends, in seconds."""


def draw_speakers(
    photo: Tensor, *, masks: Tensor, lanes: Sequence[Lane], sample_rate: int, seconds: float
) -> Tensor:
    """Draw each speaker's mask and voice in the speaker's colour.

    Args:
        photo: `(H, W, 3)` uint8.
        masks: Speaker masks `(S, H, W)` bool that do not overlap.
        lanes: One per speaker.
        sample_rate: Of the tracks, in Hz.
        seconds: Length of the video.

    Returns:
        The picture, `(H, W, 3)` uint8.
    """
    axis = TimeAxis(left=_MARGIN, width=_WIDTH - 2 * _MARGIN, seconds=seconds)
    height, width = photo.shape[:2]
    scale = min(axis.width / width, _PHOTO_HEIGHT / height)
    shown_width, shown_height = (max(1, round(side * scale)) for side in (width, height))
    left = (_WIDTH - shown_width) / 2
    lanes_top = _MARGIN + shown_height + _MARGIN
    axis_top = lanes_top + len(lanes) * (_LABEL + _LANE + _GAP)
    canvas = Canvas(width=_WIDTH, height=axis_top + AXIS_HEIGHT)
    canvas.picture(
        _tinted(photo, masks, size=(shown_height * OVERSAMPLING, shown_width * OVERSAMPLING)),
        left=left,
        top=_MARGIN,
        width=shown_width,
        height=shown_height,
    )
    for i_speaker, (mask, lane) in enumerate(zip(masks, lanes, strict=True)):
        color = SPEAKERS[i_speaker % len(SPEAKERS)]
        corner = _corner(mask)
        place = (
            left + corner.x * scale + _BADGE + 2 * _OUTLINE,
            _MARGIN + corner.y * scale + _BADGE + 2 * _OUTLINE,
        )
        _draw_badge(canvas, place, number=i_speaker + 1, color=color)
        top = lanes_top + i_speaker * (_LABEL + _LANE + _GAP)
        _draw_lane(
            canvas, axis, lane, sample_rate=sample_rate, number=i_speaker + 1, top=top, color=color
        )
    draw_axis(canvas, axis, top=axis_top)
    return canvas.finish()


def _tinted(photo: Tensor, masks: Tensor, *, size: tuple[int, int]) -> Tensor:
    """Return the photo at a size (height, width) with every mask tinted and outlined."""
    pixels = _resized(photo.cpu().permute(2, 0, 1).float(), size)
    places = _resized(masks.cpu().float(), size) >= 0.5
    if len(places) > 1:
        pixels = torch.where(places.any(dim=0), pixels, pixels * _DIM)
    for i_speaker, place in enumerate(places):
        color = torch.tensor(SPEAKERS[i_speaker % len(SPEAKERS)]).view(3, 1, 1)
        share = torch.where(_edge(place), 1.0, _TINT * place) if len(places) > 1 else _edge(place)
        pixels = torch.lerp(pixels, color.float().expand_as(pixels), share.float())
    return pixels.round().clamp(0, 255).to(torch.uint8).permute(1, 2, 0)


def _resized(channels: Tensor, size: tuple[int, int]) -> Tensor:
    return functional.interpolate(
        channels[None], size=size, mode="bilinear", antialias=True, align_corners=False
    )[0]


def _edge(place: Tensor) -> Tensor:
    """Return the pixels of a mask `(H, W)` that are near its edge."""
    width = 2 * _OUTLINE * OVERSAMPLING
    outside = functional.pad(~place, [width] * 4, value=True)[None].float()
    near = functional.max_pool2d(outside, kernel_size=(2 * width + 1, 1), stride=1)
    near = functional.max_pool2d(near, kernel_size=(1, 2 * width + 1), stride=1)
    return (near[0] > 0) & place


def _corner(mask: Tensor) -> _Place:
    """Return the top left corner of a mask's bounding box."""
    rows, columns = mask.nonzero(as_tuple=True)
    return _Place(int(columns.min()), int(rows.min()))


def _draw_badge(canvas: Canvas, place: tuple[float, float], *, number: int, color: Color) -> None:
    canvas.disc(place, _BADGE, color=color)
    canvas.text(place, str(number), color=BACKGROUND, anchor="mm", size=28)


def _draw_lane(
    canvas: Canvas,
    axis: TimeAxis,
    lane: Lane,
    *,
    sample_rate: int,
    number: int,
    top: float,
    color: Color,
) -> None:
    canvas.disc((axis.left + 6, top + _LABEL / 2), 6, color=color)
    label = f"speaker {number}: {clock(lane.start)} to {clock(lane.stop)}"
    canvas.text((axis.left + 18, top + _LABEL / 2), label)
    lane_top = top + _LABEL
    draw_panel(canvas, axis, top=lane_top, height=_LANE)
    draw_waveform(
        canvas,
        axis,
        lane.track[None],
        sample_rate=sample_rate,
        top=lane_top,
        height=_LANE,
        color=color,
    )
    for moment in (lane.start, lane.stop):
        x = axis.x(min(moment, axis.seconds))
        canvas.line([(x, lane_top), (x, lane_top + _LANE)], color=color, width=1.5)
