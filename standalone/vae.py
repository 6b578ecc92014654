"""The video VAE of the command: diffusers' `AutoencoderKLWan`, sizes from shapes.

The loader gives Wan's own names, which number all layers in one list
(`decoder.upsamples.7.resample.1.weight`); diffusers' class groups them
(`decoder.up_blocks.1.upsamplers.0.resample.1.weight`). `original_name` is the map. Latents are
normalised per channel with the class's own Wan constants; encoding takes the mode, so it is
deterministic.
Follows `WanVAE` in MultiTalk `wan/modules/vae.py`.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable

import torch
from diffusers import AutoencoderKLWan
from torch import Tensor

from ..multitalk_core.errors import WeightsError
from ..multitalk_core.files.sizes import shape_of
from ..wan_gguf_loader.files import WeightsFile
from ..wan_gguf_loader.namings import DIFFUSERS_VAE, Spelling, model_names
from .borrowed import fill, on_device
from .memory import TILE_PIXELS, TILE_STRIDE

_LATENT_CHANNELS = 16
_HEAD = "decoder.head.0.gamma"
_log = logging.getLogger(__name__)


class WanVAE:
    """A `VideoVAE` that visits `device` only while it encodes or decodes.

    Attributes:
        model: The autoencoder.
        mean: Of each latent channel, `(16,)`.
        std: Standard deviation of each latent channel, `(16,)`.
        may_tile: Whether it goes on in tiles when the card's memory runs out.
        tiled: Whether it works in tiles.
    """

    def __init__(self, model: AutoencoderKLWan, *, device: torch.device) -> None:
        self.model = model
        self._device = device
        self.mean = torch.tensor(model.config["latents_mean"])
        self.std = torch.tensor(model.config["latents_std"])
        self.may_tile = False
        self.tiled = False

    def use_tiles(self) -> None:
        """Work in overlapping tiles from now on: less memory, and a slightly different picture."""
        _log.warning("The VAE works in tiles, which changes the picture slightly.")
        self.tiled = True
        self.model.enable_tiling(TILE_PIXELS, TILE_PIXELS, TILE_STRIDE, TILE_STRIDE)

    @torch.no_grad()
    def encode(self, video: Tensor) -> Tensor:
        """Turn frames `(1, 3, T, H, W)` in [-1, 1] into latents `(1, 16, F, H/8, W/8)`, float32."""
        return self._attempt(lambda: self._encode(video))

    @torch.no_grad()
    def decode(self, latents: Tensor) -> Tensor:
        """Turn latents `(1, 16, F, h, w)` into float32 frames `(1, 3, 4F - 3, 8h, 8w)`, clamped."""
        return self._attempt(lambda: self._decode(latents))

    def _encode(self, video: Tensor) -> Tensor:
        with on_device(self.model, self._device):
            moved = video.to(self._device, self.model.dtype)
            latents: Tensor = self.model.encode(moved).latent_dist.mode().float()
            return (latents - _spread(self.mean, latents)) / _spread(self.std, latents)

    def _decode(self, latents: Tensor) -> Tensor:
        with on_device(self.model, self._device):
            plain = latents.to(self._device, torch.float32)
            plain = plain * _spread(self.std, plain) + _spread(self.mean, plain)
            frames: Tensor = self.model.decode(plain.to(self.model.dtype)).sample
            return frames.float()

    def _attempt(self, work: Callable[[], Tensor]) -> Tensor:
        if self.tiled or not self.may_tile:
            return work()
        with contextlib.suppress(torch.OutOfMemoryError):
            return work()
        # Only here are the tensors of the failed work freed; the error referred to them.
        self.use_tiles()
        return work()


def load_vae(file: WeightsFile, *, device: torch.device, dtype: torch.dtype) -> WanVAE:
    """Build the VAE of a file.

    Args:
        file: An open Wan2.1 VAE of any width.
        device: Where it computes; it rests in main memory.
        dtype: Type it computes in.

    Raises:
        WeightsError: If the file is no Wan2.1 VAE.
    """

    def width(name: str, *, rank: int) -> int:
        return shape_of(file.shapes, name, source=file.path.name, rank=rank)[0]

    channels = width("conv2.weight", rank=5)
    if channels != _LATENT_CHANNELS:
        raise WeightsError(
            f"{file.path.name} is a VAE of {channels} latent channels; Wan2.1 needs one of "
            f"{_LATENT_CHANNELS}. Get wan_2.1_vae.safetensors."
        )
    with torch.device("meta"):
        model = AutoencoderKLWan(
            base_dim=width("encoder.conv1.weight", rank=5),
            decoder_base_dim=width(_HEAD, rank=4),
            z_dim=channels,
        )
    fill(model, file, names={name: original_name(name) for name in model.state_dict()}, dtype=dtype)
    return WanVAE(model, device=device)


def vae_width(file: WeightsFile) -> int:
    """Give a VAE's channels at the size of the picture, in the decoder."""
    return shape_of(file.shapes, _HEAD, source=file.path.name, rank=4)[0]


def original_name(name: str) -> str:
    """Turn a tensor name of diffusers' class into the one of Wan's own files."""
    (renamed,) = model_names([name], Spelling(DIFFUSERS_VAE, ""))
    return renamed


def _spread(channels: Tensor, like: Tensor) -> Tensor:
    return channels.to(like).view(1, -1, 1, 1, 1)
