"""What one run of the sampler borrows from ComfyUI: VAE, picture encoder, memory, progress."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import comfy.model_management
import comfy.utils
import latent_preview
import torch
from torch import Tensor, nn

from ...multitalk_core.errors import InputError
from ...multitalk_core.geometry import PIXEL_STRIDE, Size, latent_frames
from ...multitalk_core.pipeline import Speech, Step
from .dit import HostMultiTalk
from .model import transformer_of
from .vision import encode_picture

_LATENT_CHANNELS = 16


class Session:
    """One run on a MODEL of ours: its transformer, and the encoders under the same memory manager.

    ComfyUI may put the transformer aside to make room for an encoder, so it is loaded again before
    the first call after each use of one.

    Attributes:
        transformer: For `generate`.
        device: Where it computes.
        dtype: What it computes in.
    """

    def __init__(self, model: Any, *, vae: Any, clip_vision: Any) -> None:
        self.transformer: HostMultiTalk = transformer_of(model)
        if self.transformer.config.audio is None:
            raise InputError(
                "This MODEL cannot hear: it is the base alone. Put Load MultiTalk Adapter between "
                "Load Wan2.1 (GGUF) and the sampler."
            )
        self.device: torch.device = model.load_device
        self.dtype = self.transformer.dtype
        self._model = model
        self.vae = SessionVAE(vae, session=self, latent_format=model.model.latent_format)
        self.image_encoder = SessionImageEncoder(clip_vision, session=self)
        self._memory = 0.0
        self._loaded = False

    def check_features(self, speech: Speech, *, encoder: str) -> None:
        """Check that the voices were heard by the Wav2Vec2 the adapter was made for.

        Raises:
            InputError: If they were not; the message names both files.
        """
        audio = self.transformer.config.audio
        assert audio is not None
        layers, channels = speech.features[0].shape[1:]
        if layers * channels != audio.layers * audio.channels:
            raise InputError(
                f"{encoder} gives {layers} layers of width {channels}; "
                f"{self.transformer.adapter} was made for {audio.layers} of {audio.channels}. "
                "Load chinese-wav2vec2-base with Load Wav2Vec2, or the adapter that fits."
            )

    @contextmanager
    def open(self, *, num_frames: int, size: Size) -> Iterator[None]:
        """Keep the transformer loaded whenever it is called.

        Args:
            num_frames: Frames of a segment, 4n + 1.
            size: Of the video, in pixels.
        """
        frames = latent_frames(num_frames)
        height, width = size.height // PIXEL_STRIDE, size.width // PIXEL_STRIDE
        self._memory = self._model.memory_required([1, _LATENT_CHANNELS, frames, height, width])
        net = self.transformer
        hooks = [part.register_forward_pre_hook(self._load) for part in (net, net.audio_proj)]
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()
            self._model.cleanup()

    def set_aside(self) -> None:
        """Note that another model was loaded, and check whether the user wants to stop."""
        self._loaded = False
        comfy.model_management.throw_exception_if_processing_interrupted()

    def reporter(self) -> Reporter:
        """Give the progress bar of the running node, with latent previews where they are on."""
        return Reporter(latent_preview.get_previewer(self.device, self._model.model.latent_format))

    def _load(self, _module: nn.Module, _inputs: Any) -> None:
        if not self._loaded:
            comfy.model_management.load_models_gpu([self._model], memory_required=self._memory)
            self._loaded = True


class SessionVAE:
    """ComfyUI's VAE as core's `VideoVAE`."""

    def __init__(self, vae: Any, *, session: Session, latent_format: Any) -> None:
        if getattr(vae, "latent_channels", None) != 16 or getattr(vae, "latent_dim", None) != 3:
            raise InputError(
                f"This VAE has {getattr(vae, 'latent_channels', '?')} latent channels; Wan2.1's "
                "video VAE has 16. Load wan_2.1_vae.safetensors with Load VAE."
            )
        self._vae = vae
        self._session = session
        self._latent_format = latent_format

    def encode(self, video: Tensor) -> Tensor:
        """Turn frames `(1, 3, T, H, W)` in [-1, 1] into normalised latents."""
        self._session.set_aside()
        pixels = (video[0].movedim(0, -1) + 1) / 2
        latents: Tensor = self._latent_format.process_in(self._vae.encode(pixels).float())
        return latents.to(video.device)

    def decode(self, latents: Tensor) -> Tensor:
        """Turn normalised latents into frames `(1, 3, T, H, W)` in [-1, 1]."""
        self._session.set_aside()
        pixels: Tensor = self._vae.decode(self._latent_format.process_out(latents))
        return pixels.float().movedim(-1, 1) * 2 - 1


class SessionImageEncoder:
    """ComfyUI's CLIP_VISION as core's `ImageEncoder`."""

    def __init__(self, clip: Any, *, session: Session) -> None:
        self._clip = clip
        self._session = session

    def encode(self, image: Tensor) -> Tensor:
        """Turn an image `(1, 3, H, W)` in [-1, 1] into tokens `(1, 257, C)`."""
        self._session.set_aside()
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
