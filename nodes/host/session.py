"""What one run of the sampler borrows from ComfyUI: VAE, picture encoder, progress."""

from __future__ import annotations

from typing import Any

import comfy.model_management
import comfy.utils
import latent_preview
import torch
from torch import Tensor

from ...multitalk_core.engine import Engine, Step
from ...multitalk_core.errors import InputError
from ...multitalk_core.inputs.speech import Speech
from ...multitalk_core.method.sampler import SegmentSampler
from .dit import HostMultiTalk
from .model import transformer_of
from .vision import encode_picture


class Session:
    """One run on a MODEL of ours, and the encoders under the same memory manager.

    Attributes:
        transformer: The network inside the MODEL.
        vae: ComfyUI's VAE as core's `VideoVAE`.
        image_encoder: ComfyUI's CLIP_VISION as core's `ImageEncoder`.
    """

    def __init__(self, model: Any, *, vae: Any, clip_vision: Any) -> None:
        self.transformer = talking_transformer(model)
        self._device: torch.device = model.load_device
        self._latent_format = model.model.latent_format
        self.vae = SessionVAE(vae, latent_format=self._latent_format)
        self.image_encoder = SessionImageEncoder(clip_vision)

    def engine(self, sampler: SegmentSampler) -> Engine:
        """Give the engine of the run."""
        return Engine(
            sampler=sampler, vae=self.vae, image_encoder=self.image_encoder, device=self._device
        )

    def reporter(self) -> Reporter:
        """Give the progress bar of the running node, with latent previews where they are on."""
        return Reporter(latent_preview.get_previewer(self._device, self._latent_format))


def talking_transformer(model: Any) -> HostMultiTalk:
    """Give the transformer inside a MODEL of ours that has audio layers.

    Raises:
        InputError: If another loader made the MODEL, or it has no adapter.
    """
    net = transformer_of(model)
    if net.config.audio is None:
        raise InputError(
            "This MODEL has no audio layers: it is the base model alone. Put Load MultiTalk "
            "Adapter between Load Wan2.1 (GGUF) and the sampler."
        )
    return net


def check_features(net: HostMultiTalk, speech: Speech, *, encoder: str) -> None:
    """Check that the audio features have the sizes that the adapter was trained with.

    Raises:
        InputError: If they have not; the message names both files.
    """
    audio = net.config.audio
    assert audio is not None
    layers, channels = speech.features[0].shape[1:]
    audio.check_features(layers, channels, encoder=encoder, adapter=net.adapter)


class SessionVAE:
    """ComfyUI's VAE as core's `VideoVAE`."""

    def __init__(self, vae: Any, *, latent_format: Any) -> None:
        if getattr(vae, "latent_channels", None) != 16 or getattr(vae, "latent_dim", None) != 3:
            raise InputError(
                f"This VAE has {getattr(vae, 'latent_channels', '?')} latent channels; Wan2.1's "
                "video VAE has 16. Load wan_2.1_vae.safetensors with Load VAE."
            )
        self._vae = vae
        self._latent_format = latent_format

    def encode(self, video: Tensor) -> Tensor:
        """Turn frames `(1, 3, T, H, W)` in [-1, 1] into normalised latents."""
        comfy.model_management.throw_exception_if_processing_interrupted()
        pixels = (video[0].movedim(0, -1) + 1) / 2
        latents: Tensor = self._latent_format.process_in(self._vae.encode(pixels).float())
        return latents.to(video.device)

    def decode(self, latents: Tensor) -> Tensor:
        """Turn normalised latents into frames `(1, 3, T, H, W)` in [-1, 1]."""
        comfy.model_management.throw_exception_if_processing_interrupted()
        pixels: Tensor = self._vae.decode(self._latent_format.process_out(latents))
        return pixels.float().movedim(-1, 1) * 2 - 1


class SessionImageEncoder:
    """ComfyUI's CLIP_VISION as core's `ImageEncoder`."""

    def __init__(self, clip: Any) -> None:
        self._clip = clip

    def encode(self, image: Tensor) -> Tensor:
        """Turn an image `(1, 3, H, W)` in [-1, 1] into tokens `(1, 257, C)`."""
        comfy.model_management.throw_exception_if_processing_interrupted()
        return encode_picture(self._clip, image)


class Reporter:
    """Shows each step on the node's progress bar."""

    def __init__(self, previewer: Any | None) -> None:
        self._previewer = previewer
        self._bar = comfy.utils.ProgressBar(1)

    def __call__(self, step: Step) -> None:
        """Show one finished step; raises where the user has pressed Cancel."""
        comfy.model_management.throw_exception_if_processing_interrupted()
        preview = None
        if self._previewer is not None:
            preview = self._previewer.decode_latent_to_preview_image("JPEG", step.latents)
        total = step.num_segments * step.num_steps
        self._bar.update_absolute(step.segment * step.num_steps + step.step + 1, total, preview)
