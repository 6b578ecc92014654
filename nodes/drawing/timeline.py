"""A time axis from left to right, and the waveforms along it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from torch import Tensor

from .canvas import FAINT, LINE, PANEL, Canvas, Color, faded

AXIS_HEIGHT = 34
"""Height of an axis with its labels, in pixels."""
_STEPS = (0.04, 0.1, 0.2, 0.5, 1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 1800, 3600)
_LABEL_PIXELS = 90
"""Smallest distance between two labels, in pixels."""
_COLUMNS_PER_PIXEL = 2


@dataclass(frozen=True, kw_only=True, slots=True)
class TimeAxis:
    """Maps a time to a horizontal position in the picture.

    Attributes:
        left: First pixel.
        width: In pixels.
        seconds: Time that the width stands for.
    """

    left: float
    width: float
    seconds: float

    def x(self, seconds: float) -> float:
        """Return the position of a time, in pixels."""
        return self.left + self.width * seconds / self.seconds

    @property
    def step(self) -> float:
        """Seconds between two labels."""
        least = _LABEL_PIXELS * self.seconds / self.width
        return next((step for step in _STEPS if step >= least), _STEPS[-1])


def draw_axis(canvas: Canvas, axis: TimeAxis, *, top: float) -> None:
    """Draw ticks and times along a line."""
    canvas.line([(axis.left, top), (axis.left + axis.width, top)], color=LINE)
    for i_tick in range(int(axis.seconds / axis.step + 1e-6) + 1):
        x = axis.x(i_tick * axis.step)
        canvas.line([(x, top), (x, top + 7)], color=FAINT)
        label = clock(i_tick * axis.step, step=axis.step)
        # the first and a last at the very end stay inside the picture
        anchor = "lt" if i_tick == 0 else "rt" if x > axis.left + axis.width - 20 else "mt"
        canvas.text((x, top + 12), label, color=FAINT, anchor=anchor, size=16)


def draw_waveform(
    canvas: Canvas,
    axis: TimeAxis,
    waveform: Tensor,
    *,
    sample_rate: int,
    top: float,
    height: float,
    color: Color,
) -> None:
    """Draw a sound `(C, N)`: its peaks, and over them, brighter, its root mean square.

    The highest peak fills the height; sound beyond the end of the axis is left out.
    """
    middle, half = top + height / 2, height / 2 - 4
    canvas.line([(axis.left, middle), (axis.left + axis.width, middle)], color=LINE)
    sound = waveform[:, : round(axis.seconds * sample_rate)].float().cpu().numpy()
    if not sound.size:
        return
    num_columns = round(axis.width * _COLUMNS_PER_PIXEL)
    starts = (np.arange(num_columns) * (axis.seconds * sample_rate / num_columns)).astype(np.int64)
    starts = starts[starts < sound.shape[1]]
    highest = np.maximum.reduceat(sound.max(axis=0), starts)
    lowest = np.minimum.reduceat(sound.min(axis=0), starts)
    power = np.add.reduceat(np.square(sound).mean(axis=0), starts)
    counts = np.maximum(np.diff(starts, append=sound.shape[1]), 1)
    effective = np.sqrt(power / counts)
    peak = max(float(np.abs(sound).max()), 1e-4)  # sound below -80 dB is drawn as silence
    x = axis.left + (np.arange(len(starts)) + 0.5) / _COLUMNS_PER_PIXEL
    for upper, lower, shade in (
        (highest, lowest, faded(color, share=0.55)),
        (effective, -effective, color),
    ):
        edge = [*zip(x, middle - upper / peak * half, strict=True)]
        back = [*zip(x[::-1], middle - lower[::-1] / peak * half, strict=True)]
        canvas.polygon(edge + back, color=shade)


def draw_panel(canvas: Canvas, axis: TimeAxis, *, top: float, height: float) -> None:
    """Fill the background of a lane."""
    canvas.rectangle(axis.left, top, axis.left + axis.width, top + height, color=PANEL)


def clock(seconds: float, *, step: float = 0.01) -> str:
    """Format a time with the digits that a step between times needs: `1.24 s`, `12 s`, `2:05`."""
    if seconds >= 60 and step >= 1:
        minutes, rest = divmod(round(seconds), 60)
        return f"{minutes}:{rest:02d}"
    digits = 0 if step >= 1 else 1 if step >= 0.1 else 2
    return f"{seconds:.{digits}f} s"
