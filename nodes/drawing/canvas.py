"""Canvas: a picture of antialiased shapes and text.

Shapes are drawn at twice the size and averaged; text is drawn afterwards at its final size.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

Color = tuple[int, int, int]
Point = tuple[float, float]

BACKGROUND: Color = (24, 25, 29)
PANEL: Color = (36, 38, 44)
LINE: Color = (74, 78, 89)
FAINT: Color = (146, 151, 163)
TEXT: Color = (232, 234, 239)
SPEAKERS: tuple[Color, ...] = ((64, 186, 255), (255, 159, 46))
"""One colour per speaker, distinguishable with colour blindness too."""

FONT_SIZE = 19
"""Default size of text, in pixels."""
OVERSAMPLING = 2
"""Factor by which shapes are drawn larger, in each direction."""


class _Text(NamedTuple):
    place: Point
    text: str
    color: Color
    anchor: str
    size: int


class Canvas:
    """A picture being drawn; positions and lengths are in its pixels."""

    def __init__(self, *, width: int, height: int) -> None:
        self._size = (width * OVERSAMPLING, height * OVERSAMPLING)
        self._image = Image.new("RGB", self._size, BACKGROUND)
        self._draw = ImageDraw.Draw(self._image)
        self._texts: list[_Text] = []

    def picture(self, pixels: Tensor, *, left: float, top: float, width: int, height: int) -> None:
        """Draw a picture `(H, W, 3)` uint8, stretched to a box."""
        size = (width * OVERSAMPLING, height * OVERSAMPLING)
        image = Image.fromarray(pixels.contiguous().numpy()).resize(size, Image.Resampling.BICUBIC)
        self._image.paste(image, (round(left * OVERSAMPLING), round(top * OVERSAMPLING)))

    def rectangle(
        self, left: float, top: float, right: float, bottom: float, *, color: Color, radius: int = 0
    ) -> None:
        """Fill a rectangle; `right` and `bottom` are exclusive."""
        corners = [side * OVERSAMPLING for side in (left, top, right, bottom)]
        corners[2:] = corners[2] - 1, corners[3] - 1
        self._draw.rounded_rectangle(corners, radius * OVERSAMPLING, fill=color)

    def line(self, points: Sequence[Point], *, color: Color, width: float = 1) -> None:
        """Draw a line through points."""
        self._draw.line(
            _enlarged(points), fill=color, width=round(width * OVERSAMPLING), joint="curve"
        )

    def polygon(self, points: Sequence[Point], *, color: Color) -> None:
        """Fill a polygon."""
        self._draw.polygon(_enlarged(points), fill=color)

    def disc(self, center: Point, radius: float, *, color: Color) -> None:
        """Fill a circle."""
        x, y = (side * OVERSAMPLING for side in center)
        radius *= OVERSAMPLING
        self._draw.ellipse((x - radius, y - radius, x + radius, y + radius), fill=color)

    def text(
        self,
        place: Point,
        text: str,
        *,
        color: Color = TEXT,
        anchor: str = "lm",
        size: int = FONT_SIZE,
    ) -> None:
        """Draw text on top of all shapes; `anchor` is Pillow's ("lm": left, middle)."""
        self._texts.append(_Text(place, text, color, anchor, size))

    def finish(self) -> Tensor:
        """Return the picture, `(height, width, 3)` uint8."""
        image = self._image.reduce(OVERSAMPLING)
        draw = ImageDraw.Draw(image)
        for entry in self._texts:
            font = ImageFont.load_default(entry.size)
            draw.text(entry.place, entry.text, fill=entry.color, anchor=entry.anchor, font=font)
        return torch.from_numpy(np.array(image))


def text_width(text: str, *, size: int = FONT_SIZE) -> float:
    """Return the width of a text in pixels."""
    return float(ImageFont.load_default(size).getlength(text))


def faded(color: Color, *, share: float, background: Color = PANEL) -> Color:
    """Blend a colour over a background with an opacity from 0 to 1."""
    red, green, blue = (
        round(share * own + (1 - share) * under)
        for own, under in zip(color, background, strict=True)
    )
    return red, green, blue


def _enlarged(points: Sequence[Point]) -> list[Point]:
    return [(x * OVERSAMPLING, y * OVERSAMPLING) for x, y in points]
