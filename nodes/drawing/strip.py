"""Preview strip: frames over the waveform of the sound, on one time axis.

Every frame is drawn over its own time, so that lips can be compared with the sound.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from .canvas import FAINT, LINE, SPEAKERS, Canvas, Color, text_width
from .timeline import AXIS_HEIGHT, TimeAxis, clock, draw_axis, draw_panel, draw_waveform

_MARGIN = 16
_GAP = 6
_HEADER = 40
_FRAME_HEIGHT = 150
"""Approximate height of a frame, in pixels."""
_MAX_FRAME_HEIGHT = 190
_MAX_FRAMES = 16
_MARK = 8
"""Height of the mark under a frame that points to its time, in pixels."""
_LANE = 116
_LEGEND = 30
_COLORS: tuple[Color, ...] = ((255, 159, 46), (122, 217, 120), (226, 120, 222))


class _Size(NamedTuple):
    height: int
    width: int


class Curve(NamedTuple):
    """A value over time, drawn in a lane under the waveform."""

    name: str
    values: Tensor
    """One value per frame, `(T,)`, from 0 (bottom) to 1 (top)."""


def draw_strip(
    frames: Tensor,
    *,
    waveform: Tensor | None,
    sample_rate: int,
    fps: float,
    curves: Sequence[Curve] = (),
    width: int = 1280,
) -> Tensor:
    """Draw a video at a glance.

    Args:
        frames: The video, `(T, H, W, C)` uint8, or float in 0 to 1; only the frames shown are
            read.
        waveform: Its sound, `(C, N)` in [-1, 1], from its first frame on; `None` if it has none.
        sample_rate: Of the sound, in Hz.
        fps: Frames per second.
        curves: Values to draw under the waveform, in one lane; three at most have a colour.
        width: Of the picture, in pixels.

    Returns:
        The picture, `(H, width, 3)` uint8.
    """
    num_frames, frame_height, frame_width = frames.shape[:3]
    axis = TimeAxis(left=_MARGIN, width=width - 2 * _MARGIN, seconds=num_frames / fps)
    num_shown = _num_shown(num_frames, aspect=frame_width / frame_height, width=axis.width)
    scale = min((axis.width / num_shown - _GAP) / frame_width, _MAX_FRAME_HEIGHT / frame_height)
    shown = _Size(round(frame_height * scale) or 1, round(frame_width * scale) or 1)
    marks_top = _HEADER + shown.height + 3
    wave_top = marks_top + _MARK + 4
    curves_top = wave_top + _LANE + _GAP
    axis_top = curves_top + (_LEGEND + _LANE + _GAP if curves else 0)
    canvas = Canvas(width=width, height=axis_top + AXIS_HEIGHT)
    length = f"{num_frames} frames, {clock(axis.seconds)}"
    canvas.text(
        (_MARGIN, _HEADER / 2),
        f"{length}, {fps:g} fps, {frame_width} x {frame_height}",
        color=FAINT,
    )
    chosen = [int((i_cell + 0.5) / num_shown * num_frames) for i_cell in range(num_shown)]
    _draw_frames(canvas, axis, [frames[i_frame] for i_frame in chosen], size=shown)
    moments = [axis.x((i_frame + 0.5) / fps) for i_frame in chosen]
    for x in moments:
        canvas.polygon(
            [(x - 5, marks_top), (x + 5, marks_top), (x, marks_top + _MARK)], color=FAINT
        )
    _draw_lane(canvas, axis, moments, top=wave_top)
    if waveform is None:
        canvas.text((width / 2, wave_top + _LANE / 2), "no sound", color=FAINT, anchor="mm")
    else:
        draw_waveform(
            canvas,
            axis,
            waveform,
            sample_rate=sample_rate,
            top=wave_top,
            height=_LANE,
            color=SPEAKERS[0],
        )
    if curves:
        _draw_legend(canvas, curves, top=curves_top)
        _draw_lane(canvas, axis, moments, top=curves_top + _LEGEND)
        _draw_curves(canvas, axis, curves, fps=fps, top=curves_top + _LEGEND)
    draw_axis(canvas, axis, top=axis_top)
    return canvas.finish()


def _num_shown(num_frames: int, *, aspect: float, width: float) -> int:
    """Return how many frames of an aspect ratio are shown side by side: three or more."""
    fitting = round(width / (_FRAME_HEIGHT * aspect + _GAP))
    return min(num_frames, _MAX_FRAMES, max(3, fitting))


def _pixels(frame: Tensor) -> Tensor:
    frame = frame[..., :3].cpu()
    if frame.dtype != torch.uint8:
        frame = (frame.float().clamp(0, 1) * 255).round().to(torch.uint8)
    return frame.expand(*frame.shape[:2], 3)


def _draw_frames(canvas: Canvas, axis: TimeAxis, frames: Sequence[Tensor], *, size: _Size) -> None:
    """Draw frames side by side, each in the middle of its cell."""
    cell = axis.width / len(frames)
    for i_cell, frame in enumerate(frames):
        left = axis.left + (i_cell + 0.5) * cell - size.width / 2
        canvas.picture(_pixels(frame), left=left, top=_HEADER, width=size.width, height=size.height)


def _draw_lane(canvas: Canvas, axis: TimeAxis, moments: Sequence[float], *, top: float) -> None:
    """Draw a lane with a line at the time of every frame shown."""
    draw_panel(canvas, axis, top=top, height=_LANE)
    for x in moments:
        canvas.line([(x, top), (x, top + _LANE)], color=LINE)


def _draw_legend(canvas: Canvas, curves: Sequence[Curve], *, top: float) -> None:
    x, middle = float(_MARGIN), top + _LEGEND / 2
    for curve, color in zip(curves, _COLORS, strict=False):
        canvas.disc((x + 6, middle), 6, color=color)
        canvas.text((x + 18, middle), curve.name)
        x += 18 + text_width(curve.name) + 24


def _draw_curves(
    canvas: Canvas, axis: TimeAxis, curves: Sequence[Curve], *, fps: float, top: float
) -> None:
    for curve, color in zip(curves, _COLORS, strict=False):
        heights = curve.values.float().clamp(0, 1).tolist()
        points = [
            (axis.x((i_frame + 0.5) / fps), top + 6 + (1 - height) * (_LANE - 12))
            for i_frame, height in enumerate(heights)
        ]
        canvas.line(points, color=color, width=2.5)
