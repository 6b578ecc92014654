"""Held-out scenes: people and voices that were not in the training."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ...multitalk_core.config import FPS
from ...multitalk_core.inputs.voices import SAMPLE_RATE, Recording, prepare_voice
from ..train_tiny import drawing
from ..train_tiny.articulation import articulation
from ..train_tiny.clips import SIZES
from ..train_tiny.faces import BACKGROUND, Faces, prompt, sample_faces
from ..train_tiny.motion import Motion
from ..train_tiny.voices import TEST_VOICES

SEED = 900_001
"""Training draws its people from other seeds."""
VOICE_SECONDS = 5.0

_SAMPLES_PER_FRAME = SAMPLE_RATE // FPS
_LEAST_SPEECH = 0.25
"""Mean opening of the mouth over the first second of a voice that counts as speech."""
_LEAST_CHANGE = 0.15
"""Deviation of the opening then; a mouth that stays open shows nothing."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Utterance:
    """One cut of speech, as the model gets it.

    Attributes:
        track: 16 kHz, -23 LUFS, `(N,)`.
        opening: What the mouth should do at 25 fps, `(T,)`.
    """

    track: Tensor
    opening: Tensor


@dataclass(frozen=True, kw_only=True, slots=True)
class DrawnPhoto:
    """A drawn photo with its labels.

    Attributes:
        photo: `(H, W, 3)` uint8, with closed mouths.
        mouths: Box of each mouth in pixels, from the left, `(S, 4)`.
        faces: Box of each face, likewise.
        prompt: Prompt that describes it.
        other_wall: The same prompt with another wall.
        other_colour: Mean colour of that other wall at the top, `(3,)` in [0, 1].
    """

    photo: Tensor
    mouths: Tensor
    faces: Tensor
    prompt: str
    other_wall: str
    other_colour: Tensor


def draw_scenes(count: int, *, people: int, seed: int = SEED) -> list[DrawnPhoto]:
    """Draw held-out photos with the given number of people."""
    generator = torch.Generator().manual_seed(seed + people)
    faces = sample_faces(count, people=people, generator=generator)
    still = Motion(
        articulation=torch.zeros(count, people, 1, 2),
        pose=torch.zeros(count, people, 1, 3),
        blink=torch.zeros(count, people, 1),
    )
    size = SIZES[people]
    photos = drawing.render(faces, still, size=size)[:, :, 0]
    boxes = drawing.boxes(faces, still, size=size)
    other = _other_wall(faces)
    return [
        DrawnPhoto(
            photo=((photos[i] + 1) * 127.5).round().to(torch.uint8).permute(1, 2, 0).contiguous(),
            mouths=boxes.mouths[i, :, 0],
            faces=boxes.faces[i],
            prompt=prompt(faces, i),
            other_wall=prompt(other, i),
            other_colour=other.background[i, 0],
        )
        for i in range(count)
    ]


def cut_voices(
    voices: Mapping[str, NDArray[np.float32]], count: int, *, seed: int = SEED
) -> list[Utterance]:
    """Cut pieces of `VOICE_SECONDS` out of held-out voices, wherever somebody speaks.

    Args:
        voices: Recordings `(N,)` at 16 kHz by name; those of `TEST_VOICES` are used if any is
            there, else all.
        count: Number of pieces.
        seed: Seed of the choice.
    """
    names = [name for name in TEST_VOICES if name in voices] or sorted(voices)
    whole = {name: _hear(voices[name], name) for name in names}
    generator = torch.Generator().manual_seed(seed)
    pieces = []
    for i_piece in range(count):
        name = names[i_piece % len(names)]
        start = _start(whole[name].opening, generator=generator)
        sample = start * _SAMPLES_PER_FRAME
        length = round(VOICE_SECONDS * SAMPLE_RATE)
        pieces.append(_hear(whole[name].track[sample : sample + length].numpy(), name))
    return pieces


def _hear(recording: NDArray[np.float32], name: str) -> Utterance:
    track = prepare_voice(Recording(torch.from_numpy(recording), SAMPLE_RATE, name))
    curves = articulation(track.numpy(), len(track) // _SAMPLES_PER_FRAME)
    return Utterance(track=track, opening=torch.from_numpy(curves[:, 0]))


def _start(opening: Tensor, *, generator: torch.Generator) -> int:
    """Choose a frame where somebody speaks and a whole piece follows."""
    length = round(VOICE_SECONDS * FPS)
    if len(opening) <= length:
        return 0
    coming = opening.unfold(0, FPS, 1)[: len(opening) - length]
    good = (coming.mean(dim=1) > _LEAST_SPEECH) & (coming.std(dim=1) > _LEAST_CHANGE)
    found = good.nonzero()[:, 0]
    if not len(found):
        return 0
    return int(found[int(torch.randint(len(found), (), generator=generator))])


def _other_wall(faces: Faces) -> Faces:
    """Give every picture another wall: the one half a list later."""
    colours = torch.tensor(tuple(BACKGROUND.values()))
    other = (faces.background_name + len(colours) // 2) % len(colours)
    wall = colours[other][:, None].expand(-1, 2, -1)
    return replace(faces, background_name=other, background=wall)
