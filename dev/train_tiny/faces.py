"""Drawn people: their looks, how they are painted, where their mouths are.

Everything is a soft-edged signed distance, computed for all clips and frames at once on any device,
so that training data is drawn during training. Lengths are pixels of a picture 128 high; the
picture may have any size. The style is deliberately flat: the autoencoder keeps 1 number of 48.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from itertools import product
from typing import NamedTuple

import torch
from torch import Tensor

REFERENCE_HEIGHT = 128
MOUTH_DOWN = 21.0
"""From the middle of the head to the middle of the mouth."""
OPENING_HEIGHT = 18.0
"""Of the dark part of a wide open mouth."""
INTERIOR = (0.40, 0.02, 0.07)
"""Dark red; nothing else in a picture has a green this low beside such a red."""

HAIR = {
    "black": (0.13, 0.12, 0.16),
    "brown": (0.42, 0.26, 0.15),
    "blond": (0.93, 0.77, 0.38),
    "red": (0.80, 0.34, 0.14),
    "grey": (0.66, 0.67, 0.70),
    "blue": (0.25, 0.38, 0.80),
    "pink": (0.92, 0.50, 0.68),
    "green": (0.26, 0.58, 0.38),
}
BACKGROUND = {
    "blue": (0.45, 0.66, 0.90),
    "green": (0.55, 0.80, 0.58),
    "yellow": (0.97, 0.87, 0.55),
    "orange": (0.97, 0.70, 0.45),
    "purple": (0.70, 0.60, 0.88),
    "white": (0.94, 0.94, 0.92),
    "grey": (0.60, 0.62, 0.66),
    "red": (0.86, 0.45, 0.45),
}
_SKIN = (
    (0.98, 0.85, 0.75),
    (0.95, 0.76, 0.60),
    (0.84, 0.62, 0.45),
    (0.63, 0.43, 0.31),
    (0.46, 0.31, 0.23),
)
_SHIRT = (
    (0.20, 0.30, 0.48),
    (0.75, 0.30, 0.32),
    (0.95, 0.93, 0.88),
    (0.28, 0.48, 0.42),
    (0.90, 0.68, 0.30),
    (0.42, 0.32, 0.52),
    (0.24, 0.24, 0.28),
)
_IRIS = ((0.30, 0.20, 0.14), (0.22, 0.42, 0.62), (0.28, 0.48, 0.32), (0.20, 0.20, 0.22))
_HAIRCUTS = torch.tensor(
    # back: rx, ry, y; curtain: half width, reach; bun radius; fringe: height, slope, curve
    (
        (36, 40, -8, 0, 0, 0, -24, 0.0, 0.006),  # short
        (38, 42, -6, 37, 42, 0, -25, 0.0, 0.012),  # long
        (36, 40, -8, 0, 0, 13, -27, 0.0, 0.014),  # bun
        (46, 44, -14, 0, 0, 0, -24, 0.0, 0.004),  # round
        (37, 42, -8, 0, 0, 0, -21, 0.35, 0.004),  # side parting
        (39, 42, -6, 38, 22, 0, -19, 0.0, 0.002),  # bob with a straight fringe
        (37, 41, -8, 36, 34, 0, -24, -0.4, 0.006),  # long, parted
    )
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Faces:
    """Looks of S people in each of B pictures; colours are RGB in [0, 1].

    Attributes:
        hair_name: Index into `HAIR`, `(B, S)`.
        background_name: Index into `BACKGROUND`, `(B,)`.
        hair: Colour, `(B, S, 3)`.
        background: Colours at the top and at the bottom, `(B, 2, 3)`.
        glow: Centre (fractions of width and height) and strength of a light on the wall, `(B, 3)`.
        skin: Colour, `(B, S, 3)`.
        lips: Colour, `(B, S, 3)`.
        shirt: Colour, `(B, S, 3)`.
        iris: Colour, `(B, S, 3)`.
        haircut: Nine lengths, see `_HAIRCUTS`, `(B, S, 9)`.
        head: Half width, half height and squareness of the jaw, `(B, S, 3)`.
        centre: Shift of the head right and down, and its scale, `(B, S, 3)`.
        eyes: Distance from the middle, height, half width, half height, `(B, S, 4)`.
        brows: Height above the eye, tilt, half thickness, `(B, S, 3)`.
        nose: Half width, length, `(B, S, 2)`.
        mouth: Half width at rest, smile, lip thickness, `(B, S, 3)`.
        blush: Strength, `(B, S)`.
        glasses: 1 if worn, `(B, S)`.
    """

    hair_name: Tensor
    background_name: Tensor
    hair: Tensor
    background: Tensor
    glow: Tensor
    skin: Tensor
    lips: Tensor
    shirt: Tensor
    iris: Tensor
    haircut: Tensor
    head: Tensor
    centre: Tensor
    eyes: Tensor
    brows: Tensor
    nose: Tensor
    mouth: Tensor
    blush: Tensor
    glasses: Tensor

    def to(self, device: torch.device | str) -> Faces:
        """Copy to a device."""
        return Faces(**{field.name: getattr(self, field.name).to(device) for field in fields(self)})

    def take(self, indices: Tensor | slice) -> Faces:
        """Pick pictures of the batch."""
        return Faces(**{field.name: getattr(self, field.name)[indices] for field in fields(self)})


class Boxes(NamedTuple):
    """Boxes in pixels: left, top, right, bottom.

    Attributes:
        faces: Box of each head at rest, `(B, S, 4)`.
        mouths: Box of each wide-open mouth as the head moves, `(B, S, T, 4)`.
    """

    faces: Tensor
    mouths: Tensor


def sample_faces(count: int, *, people: int = 1, generator: torch.Generator) -> Faces:
    """Draw the looks of people; the same generator state gives the same people.

    Args:
        count: Number of pictures.
        people: People in each picture, side by side.
        generator: Source of randomness, on the CPU.
    """
    shape = (count, people)

    def uniform(*bounds: tuple[float, float]) -> Tensor:
        low, high = torch.tensor(bounds).T
        return low + (high - low) * torch.rand((*shape, len(bounds)), generator=generator)

    def pick(palette: object, size: tuple[int, ...] = shape) -> tuple[Tensor, Tensor]:
        colours = torch.tensor(palette)
        index = torch.randint(len(colours), size, generator=generator)
        jitter = 0.06 * torch.rand((*size, 3), generator=generator) - 0.03
        return index, (colours[index] + jitter).clamp(0, 1)

    hair_name, hair = pick(tuple(HAIR.values()))
    background_name, wall = pick(tuple(BACKGROUND.values()), (count,))
    shade = torch.rand((count, 1), generator=generator) * 0.14 + 0.02
    skin = pick(_SKIN)[1]
    cut = torch.randint(len(_HAIRCUTS), shape, generator=generator)
    lips = skin * torch.tensor((0.88, 0.50, 0.55)) + uniform((0.05, 0.16), (0, 0.04), (0.02, 0.08))
    lips = torch.maximum(lips, torch.tensor((0.60, 0.33, 0.33))).clamp(0, 1)
    return Faces(
        hair_name=hair_name,
        background_name=background_name,
        hair=hair,
        background=torch.stack((wall + shade / 2, wall - shade), dim=1).clamp(0, 1),
        glow=torch.rand((count, 3), generator=generator) * torch.tensor((1.0, 0.6, 0.16)),
        skin=skin,
        lips=lips,
        shirt=pick(_SHIRT)[1],
        iris=pick(_IRIS)[1],
        haircut=_HAIRCUTS[cut] * uniform(*[(0.96, 1.04)] * 9),
        head=uniform((29.5, 33.5), (38.0, 42.0), (0.0, 0.5)),
        centre=uniform((-3.0, 3.0), (-2.0, 3.0), (0.94, 1.04)),
        eyes=uniform((12.5, 15.5), (-8.0, -4.5), (5.2, 7.2), (4.6, 6.6)),
        brows=uniform((9.5, 12.0), (-0.08, 0.22), (1.1, 2.0)),
        nose=uniform((3.0, 5.0), (6.0, 9.0)),
        mouth=uniform((13.0, 16.5), (0.4, 3.4), (2.2, 3.4)),
        blush=uniform((-0.15, 0.30))[..., 0].clamp_min(0),
        glasses=(torch.rand(shape, generator=generator) < 0.2).float(),
    )


def prompt(faces: Faces, i: int) -> str:
    """Describe picture `i` by the colours of hair and wall."""
    hair = [tuple(HAIR)[index] for index in faces.hair_name[i].tolist()]
    return _sentence(hair, tuple(BACKGROUND)[int(faces.background_name[i])])


def prompts(people: int = 1) -> list[str]:
    """Give every sentence of `prompt` for the given number of people."""
    return [_sentence(hair, wall) for hair in product(HAIR, repeat=people) for wall in BACKGROUND]


def _sentence(hair: Sequence[str], wall: str) -> str:
    people = " and ".join(f"a person with {colour} hair" for colour in hair)
    return f"{people} in front of a {wall} wall, talking"
