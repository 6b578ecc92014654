"""The sizes that are measured: tiny, Wan2.1 1.3B's width and Wan2.1-I2V-14B."""

from __future__ import annotations

import dataclasses
from typing import NamedTuple

from ....multitalk_core.config import AudioConfig, ModelConfig
from ....multitalk_core.geometry import GridSize
from ...tiny.wan import TRAINED


class Scale(NamedTuple):
    """A model and a video.

    Attributes:
        name: What the command line calls it.
        config: Sizes of the model.
        latent: Latent frames, rows and columns of one segment.
        weight: Rows and columns of the weight whose decoding is timed.
        vae_dim: Width of the video autoencoder.
    """

    name: str
    config: ModelConfig
    latent: tuple[int, int, int]
    weight: tuple[int, int]
    vae_dim: int

    @property
    def grid(self) -> GridSize:
        """Token grid of the segment."""
        frames, height, width = self.latent
        return GridSize(frames, height // 2, width // 2)

    @property
    def num_tokens(self) -> int:
        """Video tokens of the segment."""
        frames, height, width = self.grid
        return frames * height * width

    @property
    def num_frames(self) -> int:
        """Video frames of the segment."""
        return 4 * (self.latent[0] - 1) + 1

    def cut(self, *, layers: int | None, latent_frames: int | None) -> Scale:
        """Give the same with fewer blocks or frames."""
        config = self.config
        if layers is not None:
            config = dataclasses.replace(config, num_layers=layers)
        frames, height, width = self.latent
        latent = (latent_frames or frames, height, width)
        return self._replace(config=config, latent=latent)

    def __str__(self) -> str:
        _, height, width = self.latent
        return (
            f"{self.name}: width {self.config.dim}, {self.config.num_layers} blocks, "
            f"{8 * width}x{8 * height}x{self.num_frames} ({self.num_tokens} tokens)"
        )


_SEGMENT_480P = (21, 60, 104)
_SMALL = ModelConfig(dim=1536, ffn_dim=8960, num_heads=12, num_layers=30, audio=AudioConfig())

SCALES = {
    scale.name: scale
    for scale in (
        Scale("tiny", TRAINED, (9, 16, 16), (1024, 256), 8),
        Scale("1.3b", _SMALL, _SEGMENT_480P, (8960, 1536), 96),
        Scale("14b", ModelConfig(audio=AudioConfig()), _SEGMENT_480P, (13824, 5120), 96),
    )
}
