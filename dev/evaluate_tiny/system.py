"""The whole pack, loaded from files as by the command, for making many small videos.

Only the autoencoder is the one of `train_tiny`: it gives the same numbers (a test compares them) in
a sixth of the time.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from types import TracebackType

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from ...multitalk_core.config import SamplingConfig
from ...multitalk_core.engine import Engine
from ...multitalk_core.geometry import Box, Size
from ...multitalk_core.inputs.features import audio_features
from ...multitalk_core.inputs.scene import Scene, Text, compose
from ...multitalk_core.inputs.speech import Speech
from ...multitalk_core.method.sampler import EulerSampler
from ...multitalk_core.method.segments import TAIL_FRAMES
from ...multitalk_core.model.audio_tokens import AudioContext
from ...multitalk_core.model.dit import MultiTalkModel
from ...standalone.encoders import load_image_encoder, load_text_encoder
from ...standalone.request import ModelFiles
from ...standalone.weights import OpenFiles
from ...tools.convert import convert
from ...wan_gguf_loader.files import open_weights
from ..tiny.files import TrainedSet
from ..train_tiny.clips import MOTION_FRAMES
from ..train_tiny.vae import TinyVAE, load_vae
from .scenes import DrawnPhoto, Utterance

SEGMENT_FRAMES = 33
SAMPLING = SamplingConfig(
    steps=8,
    shift=3.0,
    text_guidance=1.0,
    audio_guidance=1.0,
    segment_frames=SEGMENT_FRAMES,
    motion_frames=MOTION_FRAMES,
    color_match=0.0,
)
"""How mouths are measured: the demo's settings, but for the colour match. That gives a picture with
an open mouth the colours of the photo, in which it is shut, and the dark of the mouth grows
lighter: by so much in pale pictures that the measure reads little of it."""
MATCHED = replace(SAMPLING, color_match=1.0)
"""The demo's settings."""


class System:
    """A set of weights, ready to generate.

    Attributes:
        device: Device that computes.
        dtype: Type that it computes in.
        transformer: The transformer; may be replaced by a deliberately broken one.
    """

    def __init__(
        self,
        models: Path,
        *,
        device: str = "cpu",
        dtype: torch.dtype = torch.float32,
        base: Path | None = None,
    ) -> None:
        """Load a set.

        Args:
            models: Folder of the set.
            device: Where to compute.
            dtype: Type to compute in.
            base: File to use instead of the set's base.
        """
        self._set = TrainedSet(models)
        self.device = torch.device(device)
        self.dtype = dtype
        files = OpenFiles(
            ModelFiles(
                base=base or self._set.base,
                adapter=self._set.adapter,
                loras=(),
                wav2vec2=self._set.wav2vec2,
                vae=self._set.vae,
                text_encoder=self._set.text_encoder,
                clip_vision=self._set.clip_vision,
            )
        )
        placed = {"device": self.device, "dtype": self.dtype}
        self.transformer: MultiTalkModel = files.load_transformer(self.dtype).to(self.device)
        self._vae: TinyVAE = load_vae(self._set.vae).to(self.device)
        self._images = load_image_encoder(files.clip_vision, **placed)
        self._texts = load_text_encoder(files.text_encoder, **placed)
        self._ears = files.load_wav2vec2()
        self._heard: dict[int, tuple[Utterance, Tensor]] = {}

    def film(
        self,
        scene: DrawnPhoto,
        voices: Sequence[Utterance],
        *,
        num_frames: int,
        places: Sequence[int] | None = None,
        prompt: str | None = None,
        negative_prompt: str | None = None,
        config: SamplingConfig = SAMPLING,
        seed: int = 0,
        sampler: Callable[..., EulerSampler] = EulerSampler,
    ) -> Tensor:
        """Make a video of a scene.

        Args:
            scene: Photo and what it shows.
            voices: One per speaker.
            num_frames: Length of the video.
            places: Place of each speaker in the picture; `None` leaves it to the default masks.
            prompt: Prompt to use instead of the scene's.
            negative_prompt: Needed if the text guidance is not 1.
            config: Settings of the sampler.
            seed: Seed of the noise.
            sampler: Makes the sampler of the transformer.

        Returns:
            Frames `(3, T, H, W)` in [0, 1].
        """
        size = Size(*scene.photo.shape[:2])
        regions: list[Tensor | Box | None] = [None] * len(voices)
        if places is not None:
            regions = [Box(*scene.faces[place].round().int().tolist()) for place in places]
        prompts = [prompt or scene.prompt]
        if negative_prompt is not None:
            prompts.append(negative_prompt)
        text, *negative_text = self._texts.encode(prompts)
        engine = Engine(
            sampler=sampler(self.transformer, dtype=self.dtype),
            vae=self._vae,
            image_encoder=self._images,
            device=self.device,
        )
        encoded = Text(text, negative_text[0] if negative_text else None)
        parts = engine.segments(
            Scene(
                picture=compose(scene.photo, regions, size=size),
                speech=Speech(features=tuple(map(self._hear, voices)), num_frames=num_frames),
                text_at=lambda _: encoded,
            ),
            config,
            seed=seed,
        )
        return (torch.cat([part.frames for part in parts], dim=1) / 2 + 0.5).clamp(0, 1)

    def _hear(self, voice: Utterance) -> Tensor:
        key = id(voice)  # kept with the features, so that no later voice has it
        if key not in self._heard:
            features = audio_features(self._ears, voice.track, tail_frames=TAIL_FRAMES)
            self._heard[key] = voice, features
        return self._heard[key][1]


class Broken(nn.Module):
    """A deliberately broken transformer, to see that a measure detects it."""

    def __init__(self, model: MultiTalkModel) -> None:
        super().__init__()
        self.model = model

    def project_audio(self, windows: Tensor) -> Tensor:
        """Turn windows into audio tokens."""
        return self.model.project_audio(windows)


class EqualLabels(Broken):
    """Gives every video token the background's label, so that L-RoPE tells nobody apart."""

    def forward(
        self,
        latents: Tensor,
        timestep: Tensor,
        *,
        audio: AudioContext | Sequence[AudioContext],
        **others: Tensor,
    ) -> Tensor:
        """Predict the velocity with masks of background only."""
        audio = (
            _without_regions(audio)
            if isinstance(audio, AudioContext)
            else [_without_regions(one) for one in audio]
        )
        velocity: Tensor = self.model(latents, timestep, audio=audio, **others)
        return velocity


def _without_regions(audio: AudioContext) -> AudioContext:
    if audio.token_masks is None:
        return audio
    masks = torch.zeros_like(audio.token_masks)
    masks[..., -1, :] = 1
    return replace(audio, token_masks=masks)


class Deaf(Broken):
    """Leaves out the audio layers' part."""

    def forward(
        self, latents: Tensor, timestep: Tensor, *, audio: object, **others: Tensor
    ) -> Tensor:
        """Predict the velocity of the base."""
        velocity: Tensor = self.model(latents, timestep, audio=None, **others)
        return velocity


class Rewritten:
    """The base of a set in another type, in a file that exists inside the `with` block."""

    def __init__(self, models: Path, type: str) -> None:
        """Choose the set and the type: `bf16`, or one that `tools.convert` writes."""
        self._base = TrainedSet(models).base
        self._type = type
        self._folder = tempfile.TemporaryDirectory()

    def __enter__(self) -> Path:
        """Give the file."""
        file = open_weights(self._base)
        plain = Path(self._folder.name) / "base.safetensors"
        weights = {name: file.dequantize(name, torch.bfloat16) for name in file.tensors}
        save_file(weights, plain, metadata={"num_heads": str(file.num_heads)})
        if self._type == "bf16":
            return plain
        packed = plain.with_suffix(".gguf")
        convert(plain, packed, type=self._type, num_heads=file.num_heads)
        return packed

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Remove the file."""
        self._folder.cleanup()
