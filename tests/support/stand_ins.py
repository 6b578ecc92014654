"""Encoders that stand in for the VAE and the CLIP tower: simple arithmetic, right shapes."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional


class MeanVAE:
    """A VAE of averages: a latent is the mean of its 8x8 pixels of one frame of every four."""

    def __init__(self) -> None:
        self.encoded: list[Tensor] = []
        self.decoded: list[Tensor] = []

    def encode(self, video: Tensor) -> Tensor:
        """Turn `(1, 3, T, H, W)` into `(1, 16, F, H/8, W/8)`."""
        self.encoded.append(video.clone())
        small = functional.avg_pool3d(video[:, :, ::4], (1, 8, 8))
        return small.mean(dim=1, keepdim=True).repeat(1, 16, 1, 1, 1)

    def decode(self, latents: Tensor) -> Tensor:
        """Turn `(1, 16, F, h, w)` into `(1, 3, 4F - 3, 8h, 8w)`; each frame differs a little."""
        frames = latents[:, :3].repeat_interleave(4, dim=2)[:, :, 3:]
        ramp = torch.linspace(0, 0.1, frames.shape[2], device=latents.device)[:, None, None]
        pixels = frames.repeat_interleave(8, dim=3).repeat_interleave(8, dim=4)
        self.decoded.append((pixels / 4 + ramp).clamp(-1, 1))
        return self.decoded[-1].clone()


class MeanImageEncoder:
    """An image tower whose tokens tell the image's mean."""

    def __init__(self, width: int) -> None:
        self.width = width
        self.seen: list[Tensor] = []

    def encode(self, image: Tensor) -> Tensor:
        """Turn `(1, 3, H, W)` into `(1, 257, width)`."""
        self.seen.append(image.clone())
        wave = torch.linspace(0, 6, 257 * self.width).sin().view(1, 257, self.width)
        return wave.to(image.device) + image.mean()
