"""The conditions of one segment from the picture: channels, image tokens, motion latents.

Fifth step of a video; follows the upstream loops, MultiTalk `wan/multitalk.py`
and InfiniteTalk `wan/multitalk.py:generate_infinitetalk`:

                     MultiTalk                            InfiniteTalk
    condition        all frames known from before         one frame of the picture
    image tokens     the last known frame                 that frame
    motion latents   start of the condition, noised       their own encoding, clean, from
                     anew each step, from segment 2 on    segment 1 on

SoulX-FlashTalk (`flash_talk/src/pipeline/flash_talk_pipeline.py`) does as InfiniteTalk, but
draws no noise for the motion latents.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Generator, Tensor

from ..config import Method
from ..geometry import FRAME_STRIDE, latent_frames
from ..protocols import ImageEncoder, VideoVAE
from .schedule import add_noise
from .segments import Segment


class Motion(NamedTuple):
    """The frames a segment takes over, and how they are kept in place.

    Attributes:
        latents: Their encoding, `(1, 16, n, h, w)` float32.
        clean: Whether they are kept clean (InfiniteTalk, FlashTalk) or at each step's noise level.
        draws: Whether noise is drawn for them; InfiniteTalk draws it too from segment 2 on and
            leaves it unused, which fixes the order of random numbers.
    """

    latents: Tensor
    clean: bool
    draws: bool

    @property
    def num_frames(self) -> int:
        """Latent frames."""
        return self.latents.shape[2]

    def inject(self, latents: Tensor, *, timestep: float, generator: Generator) -> Tensor:
        """Put the frames into `latents` `(1, 16, F, h, w)` with noise drawn anew, as upstream."""
        noise = draw_noise(self.latents.shape, generator) if self.draws else None
        return self.put(latents, timestep=timestep, noise=noise)

    def put(self, latents: Tensor, *, timestep: float, noise: Tensor | None) -> Tensor:
        """Return new latents `(B, 16, F, h, w)` with the frames as their first n.

        They get the noise level of `timestep` by `noise` `(1, 16, n, h, w)`, unless kept clean.
        """
        start = self.latents
        if noise is not None and not self.clean:
            start = add_noise(start, noise.to(start.device), timestep=timestep)
        start = start.expand(latents.shape[0], -1, -1, -1, -1)
        return torch.cat([start, latents[:, :, start.shape[2] :]], dim=2)


class Condition(NamedTuple):
    """The conditions of one segment from the picture.

    Attributes:
        known: The encoded known frames, then grey ones, `(1, 16, F, h, w)`.
        mask: Which are known, `(1, 4, F, h, w)`: a channel for each of a latent frame's four video
            frames (the first video frame counts four times), 1 for known ones.
        image: Image tokens, `(1, 257, image_dim)`.
        motion: Frames taken over, if any.
    """

    known: Tensor
    mask: Tensor
    image: Tensor
    motion: Motion | None

    def channels(self) -> Tensor:
        """Give mask and known frames as the transformer takes them, `(1, 20, F, h, w)`."""
        return torch.cat([self.mask, self.known], dim=1)


def condition_segment(
    segment: Segment,
    *,
    method: Method,
    picture: Tensor,
    motion_frames: Tensor | None,
    vae: VideoVAE,
    image_encoder: ImageEncoder,
) -> Condition:
    """Encode the picture and the motion frames, float32 on the picture's device.

    `picture` is that of the segment's start, `(1, 3, 1, H, W)` in [-1, 1]; `motion_frames` are the
    last ones of the segment before, `(1, 3, M, H, W)`, or `None` for the first segment.
    """
    later = motion_frames is not None
    frames = motion_frames if motion_frames is not None else picture
    if method != "multitalk":
        known, mask = encode_known(vae, picture, num_frames=segment.num_frames)
        draws = later and method == "infinitetalk"
        motion = Motion(vae.encode(frames).to(picture), clean=True, draws=draws)
        return Condition(known, mask, image_encoder.encode(picture[:, :, 0]).to(picture), motion)
    known, mask = encode_known(vae, frames, num_frames=segment.num_frames)
    motion = Motion(known[:, :, : latent_frames(frames.shape[2])], clean=False, draws=True)
    image = image_encoder.encode(frames[:, :, -1]).to(picture)
    return Condition(known, mask, image, motion if later else None)


def encode_known(vae: VideoVAE, known: Tensor, *, num_frames: int) -> tuple[Tensor, Tensor]:
    """Encode the known frames `(1, 3, 4n + 1, H, W)` in [-1, 1], then grey ones up to `num_frames`.

    Returns `known` and `mask` of a `Condition`.
    """
    num_known = known.shape[2]
    grey = known.new_zeros(*known.shape[:2], num_frames - num_known, *known.shape[3:])
    latents = vae.encode(torch.cat([known, grey], dim=2)).to(known)
    mask = torch.zeros_like(latents[:, :FRAME_STRIDE])
    mask[:, :, : latent_frames(num_known)] = 1
    return latents, mask


def draw_noise(shape: torch.Size | tuple[int, ...], generator: Generator) -> Tensor:
    """Draw float32 noise where the generator lives, so that a CPU seed means one video anywhere."""
    return torch.randn(shape, generator=generator, device=generator.device, dtype=torch.float32)
