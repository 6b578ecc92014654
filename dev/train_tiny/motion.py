"""Movement of drawn people: mouth, head and lids, slow enough for latent frames of 4 frames.

Where there is sound, the mouth follows the voice (articulation.py). The autoencoder's training
needs no sound; its clips use the random curves of this module.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn import functional

FPS = 25
_MOUTH_HZ = 3.0
_DRIFT_HZ = 0.35
_DRIFT = (2.2, 1.4, 0.035)
"""Deviation of a head: pixels to the right and down in a picture 128 high, radians."""
_BLINK_FRAMES = 3.0
_BLINKS_PER_SECOND = 0.3


@dataclass(frozen=True, kw_only=True, slots=True)
class Motion:
    """The motion of S people in each of B clips of T frames.

    Attributes:
        articulation: Opening in [0, 1] and width in [-1, 1] of each mouth, `(B, S, T, 2)`.
        pose: Shift right and down in pixels of a picture 128 high, roll in radians, `(B, S, T, 3)`.
        blink: How far the lids are closed, in [0, 1], `(B, S, T)`.
    """

    articulation: Tensor
    pose: Tensor
    blink: Tensor

    def to(self, device: torch.device | str) -> Motion:
        """Copy to a device."""
        return replace(
            self,
            articulation=self.articulation.to(device),
            pose=self.pose.to(device),
            blink=self.blink.to(device),
        )


def sample_motion(
    count: int, *, people: int = 1, frames: int, generator: torch.Generator
) -> Motion:
    """Draw random motion at 25 fps; the mouths talk, pause and rest.

    Args:
        count: Number of clips.
        people: Number of people in each.
        frames: Length of each clip.
        generator: Source of randomness, on the CPU.
    """
    shape = (count, people)
    noise = smooth_noise((*shape, 2), frames=frames, hertz=_MOUTH_HZ, generator=generator)
    loudness = smooth_noise(shape, frames=frames, hertz=0.4, generator=generator)
    gate = torch.sigmoid(4.0 * (loudness + 0.8))
    opening = (0.38 + 0.34 * noise[..., 0, :]).clamp(0, 1) * gate
    width = (0.6 * noise[..., 1, :]).clamp(-1, 1)
    drift = smooth_noise((*shape, 3), frames=frames, hertz=_DRIFT_HZ, generator=generator)
    pose = drift.transpose(-1, -2) * torch.tensor(_DRIFT)
    return Motion(
        articulation=torch.stack((opening, width), dim=-1),
        pose=pose.clamp(-2 * torch.tensor(_DRIFT), 2 * torch.tensor(_DRIFT)),
        blink=_sample_blinks(shape, frames=frames, generator=generator),
    )


def smooth_noise(
    shape: tuple[int, ...], *, frames: int, hertz: float, generator: torch.Generator
) -> Tensor:
    """Draw Gaussian noise of unit variance, low-passed at about `hertz`, `(*shape, frames)`."""
    deviation = FPS / (2 * torch.pi * hertz)  # of the kernel whose response halves near `hertz`
    radius = max(1, round(3 * deviation))
    taps = torch.arange(-radius, radius + 1, dtype=torch.float32)
    kernel = torch.exp(-0.5 * (taps / deviation) ** 2)
    kernel = kernel / kernel.square().sum().sqrt()
    white = torch.randn((*shape, frames + 2 * radius), generator=generator)
    flat = functional.conv1d(white.reshape(-1, 1, frames + 2 * radius), kernel.view(1, 1, -1))
    return flat.view(*shape, frames)


def _sample_blinks(shape: tuple[int, ...], *, frames: int, generator: torch.Generator) -> Tensor:
    starts = torch.rand((*shape, frames), generator=generator) < _BLINKS_PER_SECOND / FPS
    radius = 3
    taps = torch.arange(-radius, radius + 1, dtype=torch.float32)
    bump = (1.15 - (taps.abs() / _BLINK_FRAMES) ** 2).clamp(0, 1)
    padded = functional.pad(starts.float().view(-1, 1, frames), (radius, radius))
    return functional.conv1d(padded, bump.view(1, 1, -1)).clamp(0, 1).view(*shape, frames)
