"""Paints drawn people: soft-edged shapes over a wall, for all clips and frames at once.

Shapes are signed distances, negative inside; an edge is a ramp of `SOFTNESS` pixels. The distance
to an ellipse is `k0 (k0 - 1) / k1` (Quilez), accurate to the second order near the edge.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from .faces import INTERIOR, MOUTH_DOWN, OPENING_HEIGHT, REFERENCE_HEIGHT, Boxes, Faces
from .motion import Motion

SOFTNESS = 2.2
"""Width of an edge, in pixels of a picture 128 high."""
_WHITE = (0.97, 0.96, 0.95)
_PUPIL = (0.08, 0.07, 0.09)
_JAW = 3.0
"""How far the chin goes down with a wide open mouth."""
_UPPER_LIP = 0.3
"""Part of the opening that goes up; the jaw takes the rest down."""


class Window(NamedTuple):
    """The part of each picture to paint, in pixels.

    Attributes:
        corner: Left and top of each, `(B, 2)`.
        height: Height of all.
        width: Width of all.
    """

    corner: Tensor
    height: int
    width: int


class _Place(NamedTuple):
    """Coordinates of all pixels relative to a head, without its roll and scale, `(B, T, H, W)`."""

    x: Tensor
    y: Tensor
    side: Tensor


def render(
    faces: Faces, motion: Motion, *, size: tuple[int, int], window: Window | None = None
) -> Tensor:
    """Paint clips.

    Args:
        faces: Looks of S people in each of B clips; the people stand side by side.
        motion: Their motion in T frames.
        size: Height and width of the whole picture, in pixels.
        window: Part of it to paint; `None` is all of it.

    Returns:
        Frames in [-1, 1], `(B, 3, T, H, W)` (height and width of the window), float32.
    """
    num_people, num_frames = motion.blink.shape[1:]
    x, y = _grid(size, window, like=motion.pose)
    canvas = _Canvas(_wall(faces, x, y, aspect=size[1] / size[0]), num_frames)
    for person in range(num_people):
        middle = REFERENCE_HEIGHT * size[1] / size[0] * (person + 0.5) / num_people
        _Person(canvas, faces, motion, person).paint(x - middle, y)
    return canvas.frames()


def boxes(faces: Faces, motion: Motion, *, size: tuple[int, int]) -> Boxes:
    """Tell where heads and mouths are in the whole picture, in pixels."""
    num_people = motion.blink.shape[1]
    unit = size[0] / REFERENCE_HEIGHT
    middle = torch.arange(num_people).to(motion.pose) + 0.5
    middle = middle * REFERENCE_HEIGHT * size[1] / size[0] / num_people
    rest_x = middle + faces.centre[..., 0]
    rest_y = 62.0 + faces.centre[..., 1]
    scale = faces.centre[..., 2]
    head_w, head_h = faces.head[..., 0] * scale, faces.head[..., 1] * scale
    head = (rest_x - head_w, rest_y - head_h, rest_x + head_w, rest_y + head_h)
    dx, dy, roll = motion.pose.unbind(-1)
    down = (MOUTH_DOWN + (0.5 - _UPPER_LIP) * OPENING_HEIGHT) * scale[..., None]
    mouth_x = rest_x[..., None] + dx - down * roll.sin()
    mouth_y = rest_y[..., None] + dy + down * roll.cos()
    half_w, half_h = 21.0 * scale[..., None], 13.0 * scale[..., None]
    mouth = (mouth_x - half_w, mouth_y - half_h, mouth_x + half_w, mouth_y + half_h)
    return Boxes(torch.stack(head, dim=-1) * unit, torch.stack(mouth, dim=-1) * unit)


def _grid(size: tuple[int, int], window: Window | None, *, like: Tensor) -> tuple[Tensor, Tensor]:
    """Coordinates of pixel centres in reference pixels, `(B or 1, 1, H, W)`."""
    height, width = size if window is None else (window.height, window.width)
    y, x = torch.meshgrid(
        torch.arange(height).to(like), torch.arange(width).to(like), indexing="ij"
    )
    corner = torch.zeros(1, 2).to(like) if window is None else window.corner.to(like)
    unit = REFERENCE_HEIGHT / size[0]
    corner = corner.view(-1, 2, 1, 1, 1)
    return (x + corner[:, 0] + 0.5) * unit, (y + corner[:, 1] + 0.5) * unit


def _wall(faces: Faces, x: Tensor, y: Tensor, *, aspect: float) -> Tensor:
    """Paint the background, `(B, 3, 1, H, W)`."""
    top, bottom = faces.background[:, :, :, None, None].unbind(1)
    down = (y / REFERENCE_HEIGHT).clamp(0, 1)
    glow_x, glow_y, strength = faces.glow.view(-1, 3, 1, 1, 1).unbind(1)
    far = (x / (REFERENCE_HEIGHT * aspect) - glow_x) ** 2 + (y / REFERENCE_HEIGHT - glow_y) ** 2
    light = strength * torch.exp(-4.0 * far)
    return (torch.lerp(top, bottom, down) + light)[:, :, None].clamp(0, 1)


class _Canvas:
    """Frames in [0, 1] being painted, `(B, T, 3, H, W)`."""

    def __init__(self, wall: Tensor, num_frames: int) -> None:
        self._frames = wall.transpose(1, 2).repeat(1, num_frames, 1, 1, 1)

    def paint(self, distance: Tensor, colour: Tensor, opacity: Tensor | float = 1.0) -> None:
        """Cover the inside of a shape `(B, T, H, W)` with a colour `(B, 3)`."""
        cover = (0.5 - distance / SOFTNESS).clamp_(0, 1) * opacity
        self._frames.lerp_(colour[:, None, :, None, None], cover.unsqueeze(2))

    def frames(self) -> Tensor:
        return (self._frames.transpose(1, 2) * 2 - 1).contiguous()


class _Person:
    """One person of every clip."""

    def __init__(self, canvas: _Canvas, faces: Faces, motion: Motion, person: int) -> None:
        self._canvas = canvas
        self._faces = faces
        self._who = person
        self._pose = motion.pose[:, person]
        self._opening = _spread(motion.articulation[:, person, :, 0])
        self._width = _spread(motion.articulation[:, person, :, 1])
        self._blink = _spread(motion.blink[:, person])

    def paint(self, x: Tensor, y: Tensor) -> None:
        """Paint from back to front; coordinates are relative to the person's column."""
        place = self._place(x, y)
        self._paint_hair_behind(place)
        self._paint_body(x, y)
        self._paint_head(place)
        self._paint_eyes(place)
        self._paint_mouth(place)

    def _look(self, name: str) -> tuple[Tensor, ...]:
        """Numbers of a look, each `(B, 1, 1, 1)`."""
        values: Tensor = getattr(self._faces, name)[:, self._who]
        return values.reshape(len(values), -1, 1, 1, 1).unbind(1)

    def _colour(self, name: str) -> Tensor:
        colour: Tensor = getattr(self._faces, name)[:, self._who]
        return colour

    def _constant(self, colour: tuple[float, float, float]) -> Tensor:
        return torch.tensor(colour).to(self._pose).expand(len(self._pose), 3)

    def _place(self, x: Tensor, y: Tensor) -> _Place:
        right, down, scale = self._look("centre")
        dx, dy, roll = (_spread(part) for part in self._pose.unbind(-1))
        x, y = (x - right - dx) / scale, (y - 62.0 - down - dy) / scale
        cosine, sine = roll.cos(), roll.sin()
        across, along = x * cosine + y * sine, y * cosine - x * sine
        return _Place(across, along, across.abs())

    def _paint_hair_behind(self, place: _Place) -> None:
        rx, ry, y, half_width, reach, bun, *_ = self._look("haircut")
        shape = _ellipse(place.x, place.y - y, rx, ry)
        curtain = torch.maximum(
            place.side - half_width, (place.y - reach / 2 + 5).abs() - reach / 2
        )
        shape = torch.minimum(shape, torch.where(half_width > 0, curtain, 99.0))
        knot = (place.x.square() + (place.y + 47).square()).sqrt() - bun
        shape = torch.minimum(shape, torch.where(bun > 0, knot, 99.0))
        self._canvas.paint(shape, self._colour("hair"))

    def _paint_body(self, x: Tensor, y: Tensor) -> None:
        dx, dy, _ = (_spread(part) for part in self._pose.unbind(-1))
        right, down, scale = self._look("centre")
        x, y = (x - right - 0.4 * dx) / scale, (y - 62.0 - down - 0.3 * dy) / scale
        neck = torch.maximum(x.abs() - 11.5, (y - 45).abs() - 16)
        self._canvas.paint(neck, self._colour("skin") * 0.88)
        self._canvas.paint(_ellipse(x, y - 84, 46.0, 32.0), self._colour("shirt"))
        self._canvas.paint(_ellipse(x, y - 50, 12.5, 9.0), self._colour("skin") * 0.88)

    def _paint_head(self, place: _Place) -> None:
        half_width, half_height, jaw = self._look("head")
        skin = self._colour("skin")
        ears = _ellipse(place.side - half_width, place.y - 1, 5.0, 7.5)
        self._canvas.paint(ears, skin * 0.94)
        below = (place.y / half_height).clamp_min(0)
        half_width = half_width * (1 + jaw * 0.16 * below * (1 - below).clamp_min(0) * 4)
        longer = half_height + torch.where(place.y > 0, _JAW * self._opening, 0.0)
        face = _ellipse(place.x, place.y, half_width, longer)
        self._canvas.paint(face, skin)
        (blush,) = self._look("blush")
        rosy = skin * torch.tensor((1.0, 0.72, 0.72)).to(skin)
        cheek = torch.exp(-((place.side - 19).square() + (place.y - 10).square()) / 60.0)
        self._canvas.paint(torch.full_like(place.x, -9.0), rosy, cheek * blush)
        *_, height, slope, curve = self._look("haircut")
        line = place.y - height - slope * place.x - curve * place.x.square()
        fringe = torch.maximum(torch.maximum(line * 0.9, face - 1.5), place.y - 12)
        self._canvas.paint(fringe, self._colour("hair"))

    def _paint_eyes(self, place: _Place) -> None:
        apart, height, half_width, half_height = self._look("eyes")
        x, y = place.side - apart, place.y - height
        open_height = half_height * (1 - 0.93 * self._blink)
        eye = _ellipse(x, y, half_width, open_height)
        self._canvas.paint(eye, self._constant(_WHITE))
        iris = torch.maximum((x.square() + y.square()).sqrt() - 3.9, eye)
        self._canvas.paint(iris, self._colour("iris"))
        pupil = torch.maximum((x.square() + y.square()).sqrt() - 1.9, eye)
        self._canvas.paint(pupil, self._constant(_PUPIL))
        lid = torch.maximum(eye.abs() - 0.55, y + 0.2 * half_height - 2 * self._blink)
        lid = torch.maximum(lid, x.abs() - half_width)
        dark = self._colour("skin") * 0.42
        self._canvas.paint(lid, dark)
        self._paint_brows(x, y)
        (glasses,) = self._look("glasses")
        ring = torch.minimum(
            (_ellipse(x, y, half_width + 4.0, half_height + 4.5)).abs(),
            torch.maximum((y + 1).abs(), place.side - apart + half_width + 4.0),
        )
        self._canvas.paint(ring - 0.5, self._constant((0.2, 0.2, 0.24)), glasses)
        self._paint_nose(place)

    def _paint_brows(self, x: Tensor, y: Tensor) -> None:
        above, tilt, thickness = self._look("brows")
        line = (y + above + tilt * x + 0.018 * x.square()).abs() - thickness
        brow = torch.maximum(line, x.abs() - 7.0)
        self._canvas.paint(brow, self._colour("hair") * 0.7)

    def _paint_nose(self, place: _Place) -> None:
        half_width, length = self._look("nose")
        nose = _ellipse(place.x, place.y - length, half_width, 2.6)
        self._canvas.paint(nose, self._colour("skin") * 0.84)

    def _paint_mouth(self, place: _Place) -> None:
        half_width, smile, thickness = self._look("mouth")
        half_width = half_width * (1 + torch.where(self._width > 0, 0.16, 0.38) * self._width)
        half = 0.5 * OPENING_HEIGHT * self._opening
        fraction = (place.x / (half_width + thickness)).square()
        middle = MOUTH_DOWN + (1 - 2 * _UPPER_LIP) * half + smile * (0.5 - fraction)
        y = place.y - middle
        lips = _lens(place.x, y, half_width + thickness, half + thickness)
        self._canvas.paint(lips, self._colour("lips"))
        line = _lens(place.x, y, half_width, torch.full_like(half, 0.6))
        self._canvas.paint(line, self._colour("lips") * 0.92)
        inside = _lens(place.x, y, half_width, half)
        self._canvas.paint(inside, self._constant(INTERIOR), _thin(half))
        teeth = torch.maximum(inside + 0.8, y + half * 0.55)
        self._canvas.paint(teeth, self._constant(_WHITE), (half / 2.5).clamp(0, 1))


def _ellipse(
    x: Tensor, y: Tensor, half_width: Tensor | float, half_height: Tensor | float
) -> Tensor:
    u, v = x / half_width, y / half_height
    k0 = (u.square() + v.square()).sqrt()
    k1 = ((u / half_width).square() + (v / half_height).square()).sqrt().clamp_min_(1e-6)
    return k0 * (k0 - 1) / k1


def _lens(x: Tensor, y: Tensor, half_width: Tensor, half_height: Tensor) -> Tensor:
    """Give the distance to a lens: two parabolas that meet at `half_width`, with rounded tips."""
    u = x / half_width
    slope = 2 * half_height * u / half_width
    lens = (y.abs() - half_height * (1 - u.square())) / (1 + slope.square()).sqrt()
    return torch.maximum(lens, x.abs() - half_width + 1.0)


def _thin(half: Tensor) -> Tensor:
    """Opacity that gives a shape thinner than an edge the area it should have."""
    part = half / SOFTNESS
    return torch.where(part < 0.5, 2 * part / (0.5 + part).square(), 1.0)


def _spread(values: Tensor) -> Tensor:
    """Broadcast `(B, T)` to `(B, T, H, W)`."""
    return values[:, :, None, None]
