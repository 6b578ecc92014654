"""Draws the pictures of `workflows/inputs`: python -m comfyui_multitalk.dev.draw_examples [FOLDER].

Flat shapes at four times the size, then scaled down. Lengths are in units of the head's width,
from the middle of the face, y down.
"""

from __future__ import annotations

import sys
from math import cos, radians, sin
from pathlib import Path
from typing import NamedTuple

from PIL import Image, ImageDraw

OVERSAMPLING = 4
HEIGHT = 512  # pixels
DEFAULT_FOLDER = Path(__file__).resolve().parents[1] / "workflows" / "inputs"
_EYE_WHITE, _PUPIL, _GLINT = "#fbf8f4", "#1d1a1c", "#ffffff"
_OUTLINE = 0.014


class Look(NamedTuple):
    """Colours and hair of a person."""

    skin: str
    shade: str
    blush: str
    hair: str
    strand: str
    iris: str
    lips: str
    shirt: str
    collar: str
    long_hair: bool


WOMAN = Look(
    "#f0c29c", "#dfa67f", "#eaa98a", "#4a2b25", "#623b32", "#4d7a63", "#b8483f", "#2f6f8f",
    "#f4efe6", long_hair=True,
)  # fmt: skip
MAN = Look(
    "#c98f66", "#b0764f", "#c07f5c", "#26211f", "#3a322e", "#5a4331", "#9a4a3e", "#b5623a",
    "#efe7da", long_hair=False,
)  # fmt: skip


class Pen:
    """Draws around the middle of a face, in head widths."""

    def __init__(self, image: Image.Image, *, middle: tuple[float, float], head: float) -> None:
        self._draw = ImageDraw.Draw(image)
        self._middle = middle
        self._head = head

    def ellipse(self, x: float, y: float, rx: float, ry: float, *, fill: str) -> None:
        """Fill an ellipse of the given radii."""
        self._draw.ellipse((*self._at(x - rx, y - ry), *self._at(x + rx, y + ry)), fill=fill)

    def polygon(self, points: list[tuple[float, float]], *, fill: str) -> None:
        """Fill a shape."""
        self._draw.polygon([self._at(x, y) for x, y in points], fill=fill)

    def arc(
        self, x: float, y: float, rx: float, ry: float, turn: tuple[int, int], **ink: str
    ) -> None:
        """Stroke a part of an ellipse, in degrees clockwise from the right."""
        self.line(
            [
                (x + rx * cos(radians(angle)), y + ry * sin(radians(angle)))
                for angle in range(turn[0], turn[1] + 1, 4)
            ],
            width=2 * _OUTLINE,
            **ink,
        )

    def line(self, points: list[tuple[float, float]], *, width: float, fill: str) -> None:
        """Stroke a path with round ends, `width` wide."""
        size = round(width * self._head)
        self._draw.line([self._at(x, y) for x, y in points], fill=fill, width=size, joint="curve")
        for x, y in (points[0], points[-1]):
            self.ellipse(x, y, width / 2, width / 2, fill=fill)

    def _at(self, x: float, y: float) -> tuple[float, float]:
        return self._middle[0] + x * self._head, self._middle[1] + y * self._head


def person(pen: Pen, look: Look) -> None:
    """Draw head and shoulders, facing the camera, mouth closed."""
    if look.long_hair:
        pen.ellipse(0, -0.12, 0.66, 0.72, fill=look.hair)
        pen.polygon([(-0.66, -0.1), (0.66, -0.1), (0.74, 0.95), (-0.74, 0.95)], fill=look.hair)
    _shoulders(pen, look)
    for side in (-1, 1):
        pen.ellipse(0.5 * side, 0.06, 0.09, 0.15, fill=look.shade)
    pen.ellipse(0, 0.0, 0.5, 0.58, fill=look.skin)
    pen.ellipse(0, 0.28, 0.37, 0.38, fill=look.skin)
    _hair(pen, look)
    for side in (-1, 1):
        _eye(pen, look, side)
        pen.ellipse(0.3 * side, 0.25, 0.1, 0.07, fill=look.blush)
    pen.line([(0.0, 0.04), (0.05, 0.2), (0.0, 0.225)], width=0.022, fill=look.shade)
    _mouth(pen, look)


def _shoulders(pen: Pen, look: Look) -> None:
    pen.ellipse(0, 1.5, 1.12, 0.72, fill=look.shirt)
    pen.polygon(
        [(-0.21, 0.4), (0.21, 0.4), (0.23, 0.97), (0, 1.16), (-0.23, 0.97)], fill=look.shade
    )
    for side in (-1, 1):
        pen.polygon(
            [(0.2 * side, 0.82), (0.36 * side, 0.95), (0.17 * side, 1.22), (0, 1.1)],
            fill=look.collar,
        )


def _hair(pen: Pen, look: Look) -> None:
    top = [(0.545 * cos(radians(a)), -0.06 + 0.62 * sin(radians(a))) for a in range(180, 361, 4)]
    if look.long_hair:
        fringe = [(0.5, 0.1), (0.42, -0.17), (0.1, -0.3), (-0.16, -0.34), (-0.4, -0.16)]
        pen.polygon([*top, (0.55, 0.3), *fringe, (-0.5, 0.1), (-0.55, 0.3)], fill=look.hair)
        pen.arc(0.14, -0.22, 0.32, 0.24, (200, 330), fill=look.strand)
        pen.arc(-0.32, -0.24, 0.16, 0.2, (200, 300), fill=look.strand)
    else:
        fringe = [(0.49, -0.02), (0.42, -0.24), (0.2, -0.3), (-0.12, -0.26), (-0.36, -0.31)]
        pen.polygon([*top, *fringe, (-0.46, -0.2), (-0.49, -0.02)], fill=look.hair)
        pen.arc(0, -0.24, 0.36, 0.26, (215, 325), fill=look.strand)


def _eye(pen: Pen, look: Look, side: int) -> None:
    x, y = 0.205 * side, 0.0
    pen.ellipse(x, y, 0.1, 0.062, fill=_EYE_WHITE)
    pen.ellipse(x, y, 0.055, 0.058, fill=look.iris)
    pen.ellipse(x, y, 0.028, 0.03, fill=_PUPIL)
    pen.ellipse(x + 0.018, y - 0.02, 0.013, 0.013, fill=_GLINT)
    pen.arc(x, y + 0.006, 0.105, 0.072, (190, 350), fill=look.hair)
    brow = [(x + 0.125 * side, -0.12), (x + 0.02 * side, -0.16), (x - 0.105 * side, -0.135)]
    pen.line(brow, width=0.035, fill=look.hair)


def _mouth(pen: Pen, look: Look) -> None:
    pen.ellipse(0, 0.405, 0.115, 0.04, fill=look.lips)
    pen.polygon([(-0.16, 0.385), (-0.05, 0.35), (0, 0.363), (0.05, 0.35), (0.16, 0.385), (0, 0.41)],
                fill=look.lips)  # fmt: skip
    pen.line([(-0.15, 0.385), (-0.06, 0.39), (0, 0.396), (0.06, 0.39), (0.15, 0.385)],
             width=0.012, fill="#6e2a26")  # fmt: skip


def room(width: int) -> Image.Image:
    """Draw a wall in evening light, with a window, a shelf and a floor line out of sight."""
    size = (width * OVERSAMPLING, HEIGHT * OVERSAMPLING)
    image = Image.linear_gradient("L").resize(size)
    image = Image.composite(
        Image.new("RGB", size, "#b9c4bd"), Image.new("RGB", size, "#e3ddcf"), image
    )
    draw = ImageDraw.Draw(image)

    def box(left: float, top: float, right: float, bottom: float, colour: str) -> None:
        edges = (left, top, right, bottom)
        draw.rectangle([edge * HEIGHT * OVERSAMPLING for edge in edges], fill=colour)

    box(0.05, 0.08, 0.3, 0.5, "#f7f3ea")
    box(0.067, 0.097, 0.283, 0.483, "#9cc4d8")
    box(0.067, 0.35, 0.283, 0.483, "#8fae8b")
    box(0.168, 0.097, 0.182, 0.483, "#f7f3ea")
    right = width / HEIGHT
    box(right - 0.27, 0.3, right, 0.325, "#8a6a4f")
    books = ("#7b4b52", "#c9a24b", "#4f6d7a", "#a9745b", "#5f7d5a")
    for place, colour in enumerate(books):
        left = right - 0.25 + 0.045 * place
        box(left, 0.17 + 0.02 * (place % 3), left + 0.038, 0.3, colour)
    return image


def portrait() -> Image.Image:
    """Draw one person, 512 x 512 pixels."""
    image = room(HEIGHT)
    unit = HEIGHT * OVERSAMPLING
    person(Pen(image, middle=(0.5 * unit, 0.44 * unit), head=0.4 * unit), WOMAN)
    return image.resize((HEIGHT, HEIGHT), Image.Resampling.LANCZOS)


def pair() -> Image.Image:
    """Draw two people side by side, 768 x 512 pixels."""
    width = 768
    image = room(width)
    unit = HEIGHT * OVERSAMPLING
    person(Pen(image, middle=(0.38 * unit, 0.47 * unit), head=0.33 * unit), MAN)
    person(Pen(image, middle=(1.12 * unit, 0.48 * unit), head=0.32 * unit), WOMAN)
    return image.resize((width, HEIGHT), Image.Resampling.LANCZOS)


def main() -> int:
    """Write both pictures; returns the exit code."""
    folder = Path(sys.argv[1]) if len(sys.argv) > 1 else DEFAULT_FOLDER
    portrait().save(folder / "portrait.png", optimize=True)
    pair().save(folder / "pair.png", optimize=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
