"""The quality that the tiny autoencoder must reach on faces that it never saw."""

from __future__ import annotations

import statistics
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from .drawing import boxes, render
from .faces import sample_faces
from .motion import sample_motion
from .mouth import correlation, opening
from .vae import LATENT_CHANNELS, TinyVAE

SIZES = {1: (128, 128), 2: (128, 192)}
"""Height and width of pictures of one and of two people."""
_HELD_OUT_SEED = 1_000_003
_FRAMES = 33
_LONG = 81
_LONG_TAIL = 16


@dataclass(frozen=True, kw_only=True, slots=True)
class Gate:
    """Quality of reconstructed held-out clips: decibels for frames in [0, 1], mean of clips."""

    psnr: float
    psnr_first_frame: float
    psnr_end_of_81_frames: float
    mouth_r_median: float
    mouth_r_mean: float
    mouth_r_lowest_tenth: float

    @property
    def passed(self) -> bool:
        """Whether these latents are good enough to train a transformer."""
        return self.psnr >= 31 and self.psnr_first_frame >= 27 and self.mouth_r_median >= 0.93


@torch.no_grad()
def evaluate(model: TinyVAE, *, num_clips: int, device: torch.device) -> Gate:
    """Encode and decode held-out clips, every other one with two people.

    Args:
        model: Weights to judge.
        num_clips: Of 33 frames; one more has 81.
        device: Where to compute.
    """
    generator = torch.Generator().manual_seed(_HELD_OUT_SEED)
    decibels, first, mouths = [], [], []
    for i_clip in range(num_clips):
        people = 1 + i_clip % 2
        frames, measured = _round_trip(model, people, _FRAMES, generator, device)
        decibels.append(_psnr(*frames))
        first.append(_psnr(frames[0][:, :, :1], frames[1][:, :, :1]))
        mouths += measured
    frames, _ = _round_trip(model, 1, _LONG, generator, device)
    return Gate(
        psnr=statistics.fmean(decibels),
        psnr_first_frame=statistics.fmean(first),
        psnr_end_of_81_frames=_psnr(*(part[:, :, -_LONG_TAIL:] for part in frames)),
        mouth_r_median=statistics.median(mouths),
        mouth_r_mean=statistics.fmean(mouths),
        mouth_r_lowest_tenth=sorted(mouths)[len(mouths) // 10],
    )


@torch.no_grad()
def publish(model: TinyVAE, path: Path, *, device: torch.device) -> None:
    """Give the latents mean 0 and deviation 1 on drawn clips, and write the file, fp16."""
    generator = torch.Generator().manual_seed(_HELD_OUT_SEED + 1)
    latents = []
    for people in (1, 2) * 6:
        size = SIZES[people]
        faces = sample_faces(1, people=people, generator=generator).to(device)
        motion = sample_motion(1, people=people, frames=_FRAMES, generator=generator).to(device)
        found = model.encode(render(faces, motion, size=size))
        latents.append(found.transpose(0, 1).reshape(LATENT_CHANNELS, -1))
    spread = torch.cat(latents, dim=1)
    model.whiten(spread.mean(dim=1), spread.std(dim=1))
    stored = {
        name: value.half().contiguous().cpu() for name, value in sorted(model.state_dict().items())
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_suffix(".part")
    save_file(stored, draft)
    draft.replace(path)


def _round_trip(
    model: TinyVAE, people: int, num_frames: int, generator: torch.Generator, device: torch.device
) -> tuple[tuple[Tensor, Tensor], list[float]]:
    """Give a clip, its reconstruction, and how well each reconstructed mouth moves."""
    faces = sample_faces(1, people=people, generator=generator).to(device)
    motion = sample_motion(1, people=people, frames=num_frames, generator=generator).to(device)
    size = SIZES[people]
    drawn = render(faces, motion, size=size)
    back = model.decode(model.encode(drawn)).clamp(-1, 1)
    pictures = (back[0] + 1) / 2
    mouths = boxes(faces, motion, size=size).mouths[0]
    followed = [
        correlation(opening(pictures, mouths[who]), motion.articulation[0, who, :, 0])
        for who in range(people)
    ]
    return (drawn, back), followed


def _psnr(one: Tensor, other: Tensor) -> float:
    return float(-10 * ((one - other) / 2).square().mean().log10())
