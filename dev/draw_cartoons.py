"""Draws the photos for the tiny set: python -m comfyui_multitalk.dev.draw_cartoons [FOLDER].

The tiny set knows only the people of `dev/train_tiny`. The same code draws these two pictures, from
seeds that were not used in training.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import NamedTuple

import torch
from PIL import Image
from torch import Tensor

from .train_tiny.drawing import boxes, render
from .train_tiny.faces import Faces, prompt, sample_faces
from .train_tiny.motion import Motion

DEFAULT_FOLDER = Path(__file__).resolve().parents[1] / "workflows" / "inputs"


class Cartoon(NamedTuple):
    """One picture.

    Attributes:
        name: Name of its file.
        people: How many it shows.
        seed: Seed of their looks.
        size: Height and width in pixels.
    """

    name: str
    people: int
    seed: int
    size: tuple[int, int]

    @property
    def prompt(self) -> str:
        """Prompt that describes it."""
        return prompt(self.look()[0], 0)

    def draw(self) -> Image.Image:
        """Paint it with closed mouths."""
        picture = render(*self.look(), size=self.size)[0, :, 0]
        pixels = ((picture + 1) * 127.5).round().to(torch.uint8).permute(1, 2, 0)
        return Image.fromarray(pixels.numpy())

    def mouths(self, size: tuple[int, int]) -> Tensor:
        """Box of each mouth, `(S, 4)`, in pixels of a video of that height and width."""
        return boxes(*self.look(), size=size).mouths[0, :, 0]

    def look(self) -> tuple[Faces, Motion]:
        """Give its people, and one frame without motion."""
        generator = torch.Generator().manual_seed(self.seed + self.people)
        still = Motion(
            articulation=torch.zeros(1, self.people, 1, 2),
            pose=torch.zeros(1, self.people, 1, 3),
            blink=torch.zeros(1, self.people, 1),
        )
        return sample_faces(1, people=self.people, generator=generator), still


PORTRAIT = Cartoon("tiny_portrait.png", 1, 700_014, (256, 256))
PAIR = Cartoon("tiny_pair.png", 2, 700_003, (256, 384))


def main() -> int:
    """Write the pictures and print their prompts; return the exit code."""
    folder = Path(sys.argv[1]) if len(sys.argv) > 1 else DEFAULT_FOLDER
    for cartoon in (PORTRAIT, PAIR):
        cartoon.draw().save(folder / cartoon.name, optimize=True)
        sys.stdout.write(f"{cartoon.name}: {cartoon.prompt}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
