"""Run `engine.generate` on a sampler file's inputs, with recorded results of the encoders.

The product's recipe runs with upstream's division into segments (`upstream_plan`) and upstream's
mirrored end of the audio features. VAE and CLIP tower return, call by call, what the official run
got from them.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from ...multitalk_core.config import ApgConfig, SamplingConfig
from ...multitalk_core.engine import Engine
from ...multitalk_core.geometry import Size, latent_frames
from ...multitalk_core.inputs.masks import fit_masks, to_tokens
from ...multitalk_core.inputs.scene import Picture, Scene, Text
from ...multitalk_core.inputs.speech import Speech
from ...multitalk_core.method.sampler import EulerSampler
from ...multitalk_core.method.segments import Segment, SegmentPlan
from ...multitalk_core.model.attention import SelfAttended, SelfAttention
from ...multitalk_core.model.audio_tokens import AudioContext
from ...multitalk_core.model.dit import MultiTalkModel
from .dit import upstream_map
from .golden import GoldenFile
from .segments import upstream_plan


@dataclass
class Call:
    """One call of the transformer."""

    latents: Tensor
    timestep: float
    condition: Tensor
    negative_text: bool
    silent: bool
    num_streams: int
    velocity: Tensor


@dataclass
class Chunk:
    """Everything recorded of one segment (a chunk in upstream's words)."""

    windows: Tensor
    calls: list[Call] = field(default_factory=list)
    final_latents: Tensor | None = None
    vae_inputs: list[Tensor] = field(default_factory=list)
    image_input: Tensor | None = None

    @property
    def num_passes(self) -> int:
        """Calls of one step."""
        first = self.calls[0].timestep
        return sum(call.timestep == first for call in self.calls)

    def steps(self, i_pass: int) -> list[Call]:
        """Give the calls of one pass, one for each step."""
        return self.calls[i_pass :: self.num_passes]


@dataclass
class Run:
    """Everything recorded of one variant."""

    chunks: list[Chunk]
    frame_numbers: list[int]
    video: Tensor


class Recorder:
    """Replaces transformer, VAE and image encoder, and records their inputs."""

    def __init__(self, file: GoldenFile, model: MultiTalkModel) -> None:
        self.file = file
        self.model = model
        self.chunks: list[Chunk] = []
        self._silence: Tensor | None = None
        self._vae_inputs: list[Tensor] = []
        self._image_inputs: list[Tensor] = []
        self._num_vae_inputs = 0

    def vae_encode(self, video: Tensor) -> Tensor:
        """Give the recorded latents of this call, cut to the number of frames."""
        latents = self.file.get(f"in.vae_encode_out.{self._num_vae_inputs}")[None]
        latents = latents[:, :, : latent_frames(video.shape[2])]
        self._num_vae_inputs += 1
        self._vae_inputs.append(video[0].clone())
        return latents

    def vae_decode(self, latents: Tensor) -> Tensor:
        """Give the recorded frames of this segment."""
        self.chunks[-1].final_latents = latents[0].clone()
        return self.file.get(f"in.vae_decode_out.{len(self.chunks) - 1}")[None].clone()

    def image_encode(self, image: Tensor) -> Tensor:
        """Give the recorded image tokens of this segment."""
        self._image_inputs.append(image.clone(memory_format=torch.contiguous_format))
        return self.file.get(f"in.clip.{len(self._image_inputs) - 1}")

    def project_audio(self, windows: Tensor) -> Tensor:
        """Project by the real model; the first windows of a segment are its voices."""
        tokens = self.model.project_audio(windows)
        if len(self.chunks) < len(self._image_inputs):
            chunk = Chunk(windows.clone(), vae_inputs=self._vae_inputs)
            chunk.image_input = self._image_inputs[-1]
            self.chunks.append(chunk)
            self._vae_inputs = []
        else:
            self._silence = tokens
        return tokens

    def __call__(self, latents: Tensor, timestep: Tensor, **given: Any) -> Tensor:
        """Call the real model."""
        velocity = self.model(latents, timestep, **given)
        audio = self.model.config.audio
        assert audio is not None
        prompt = self.file.get("in.context").to(latents).float()
        for entry, tokens in enumerate(tokens_of_entries(given["audio"])):
            text = given["text"][entry].float()
            self.chunks[-1].calls.append(
                Call(
                    latents=latents[entry].clone(),
                    timestep=float(timestep[entry]),
                    condition=given["condition"][entry : entry + 1].clone(),
                    negative_text=not torch.equal(text[: len(prompt)], prompt),
                    silent=torch.equal(tokens, self._silence[0]),
                    num_streams=tokens.shape[1] // audio.num_tokens,
                    velocity=velocity[entry].clone(),
                )
            )
        return velocity


def tokens_of_entries(audio: AudioContext | Sequence[AudioContext]) -> list[Tensor]:
    """Give the audio tokens `(F, M, token_dim)` of each entry of a batch."""
    contexts = [audio] if isinstance(audio, AudioContext) else audio
    return [tokens for one in contexts for tokens in one.tokens]


class RecordedVAE:
    """Replaces the VAE."""

    def __init__(self, recorder: Recorder) -> None:
        self.encode = recorder.vae_encode
        self.decode = recorder.vae_decode


class RecordedImageEncoder:
    """Replaces the CLIP tower."""

    def __init__(self, recorder: Recorder) -> None:
        self.encode = recorder.image_encode


@dataclass(frozen=True, kw_only=True, slots=True)
class UpstreamSpeech(Speech):
    """Speech that ends like upstream's: the last segment ends with reversed features."""

    plan: SegmentPlan

    def windows(self, segment: Segment) -> Tensor:
        """Give the features around each frame of a segment, `(S, T, 5, L, C)`."""
        features = self.features
        if segment.start > 0 and segment == self.plan.segments[-1]:
            features = tuple(_mirror_end(one, stop=segment.stop) for one in features)
        return Speech(features=features, num_frames=self.num_frames).windows(segment)


class UpstreamEngine(Engine):
    """Cuts the video into upstream's segments."""

    upstream_plan: SegmentPlan

    def plan(self, scene: Scene, config: SamplingConfig) -> SegmentPlan:
        """Give upstream's segments."""
        return self.upstream_plan


class Variant:
    """One recorded run of a sampler file: its settings and its inputs.

    Attributes:
        name: Its name in the file.
        config: Settings of the product for it.
        num_speakers: Number of voices.
        features: Features of each voice.
        max_frames: Upstream's limit.
        plan: Upstream's segments.
        size: Size of the video.
        photo_size: Size of the photo.
        boxes: Upstream's boxes (first row, first column, last row, last column), if any.
    """

    def __init__(self, file: GoldenFile, name: str) -> None:
        conf, settings = file.config["conf"], file.config["variants"][name]
        self.file, self.name, self.settings = file, name, settings
        self.config = SamplingConfig(
            method=file.config["which"],
            steps=settings["steps"],
            shift=settings["shift"],
            text_guidance=settings["text"],
            audio_guidance=settings["audio"],
            segment_frames=settings.get("frame_num", conf["frame_num"]),
            motion_frames=settings.get("motion_frame", conf["motion_frame"]),
            color_match=settings.get("cc", 0.0),
            apg=_apg(settings),
        )
        self.num_speakers = int(settings["humans"])
        self.features = tuple(
            file.get(f"in.audio.person{number + 1}") for number in range(self.num_speakers)
        )
        self.max_frames = int(settings.get("max_frames_num", conf.get("max_frames_num", 1000)))
        self.plan = upstream_plan(
            [len(one) for one in self.features],
            method=self.config.method,
            segment_frames=self.config.segment_frames,
            motion_frames=self.config.motion_frames,
            max_frames=self.max_frames,
        )
        self.size = Size(*conf["target"])
        self.photo_size = Size(*conf["src"])
        self.boxes: list[list[int]] | None = settings.get("bbox")

    @property
    def num_passes_upstream(self) -> int:
        """Calls of the model in a step of upstream's, which always guides."""
        return 2 if self.config.text_guidance == 1 else 3

    def photo(self, frame: int) -> Tensor:
        """Give the picture of a video frame: of the still photo, or of the conditioning video."""
        if "in.cond_image_u8" in self.file.tensors:
            return self.file.get("in.cond_image_u8")
        prefix = "in.cond_image_u8."
        last = max(int(n.removeprefix(prefix)) for n in self.file.tensors if n.startswith(prefix))
        return self.file.get(f"{prefix}{min(frame, last)}")


def run(variant: Variant, model: MultiTalkModel, *, masks: Tensor, dtype: torch.dtype) -> Run:
    """Generate a variant's video and return everything recorded on the way."""
    file = variant.file
    recorder = Recorder(file, model)
    frame_numbers: list[int] = []

    def photo(frame: int) -> Tensor:
        frame_numbers.append(frame)
        return variant.photo(frame)

    engine = UpstreamEngine(
        sampler=EulerSampler(recorder, dtype=dtype),
        vae=RecordedVAE(recorder),
        image_encoder=RecordedImageEncoder(recorder),
        device="cpu",
    )
    engine.upstream_plan = variant.plan
    text = Text(file.get("in.context")[None], file.get("in.context_null")[None])
    token_masks = (
        None if variant.num_speakers == 1 else to_tokens(fit_masks(masks, size=variant.size))
    )
    scene = Scene(
        picture=Picture(photo, token_masks, variant.size),
        speech=UpstreamSpeech(
            features=variant.features, num_frames=variant.plan.num_frames, plan=variant.plan
        ),
        text_at=lambda _: text,
    )
    parts = engine.segments(scene, variant.config, seed=variant.settings["seed"])
    video = torch.cat([part.frames for part in parts], dim=1)
    return Run(recorder.chunks, frame_numbers, video)


@contextmanager
def upstream_maps(model: MultiTalkModel) -> Iterator[None]:
    """Use upstream's reference map where the product's would differ.

    That is with an odd number of heads and where a region has no token.
    """

    def look(
        module: SelfAttention, args: tuple[Tensor], given: dict[str, Any], output: SelfAttended
    ) -> SelfAttended:
        masks = given["token_masks"]
        if output.reference_map is None:
            return output
        if model.config.num_heads % 2 == 0 and masks.any(dim=-1).all():
            return output
        heads = module.project(given["norm"](*args), rotation=given["rotation"])
        return SelfAttended(output.tokens, upstream_map(heads.q, heads.k, token_masks=masks))

    attentions = [one for one in model.modules() if isinstance(one, SelfAttention)]
    hooks = [one.register_forward_hook(look, with_kwargs=True) for one in attentions]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _apg(settings: dict[str, Any]) -> ApgConfig | None:
    if not settings.get("apg"):
        return None
    default = ApgConfig()
    return ApgConfig(
        momentum=settings.get("apg_momentum", default.momentum),
        norm_threshold=settings.get("apg_norm_threshold", default.norm_threshold),
    )


def _mirror_end(features: Tensor, *, stop: int) -> Tensor:
    if stop < len(features):
        return features
    missing = stop - len(features) + 3  # as upstream: three more than are needed
    return torch.cat([features, features[-missing:].flip(0)])
