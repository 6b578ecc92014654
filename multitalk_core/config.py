"""Settings of the method as frozen dataclasses: the model's sizes and one run's sampling choices.

Sizes follow `WanModel` and `AudioProjModel` in MultiTalk `wan/modules/multitalk_model.py`; the
sampling defaults are those of each method's own code at 480p (`DEFAULTS`). Stdlib only.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal, get_args

from .errors import InputError, WeightsError

Method = Literal["multitalk", "infinitetalk", "flashtalk"]

FPS = 25
"""Video frames, and audio features, per second: a constant of the model."""

MAX_SEGMENT_FRAMES = 1001
"""Most frames that are sampled at once."""

AUDIO_WINDOW = 5
"""Audio features seen around one video frame (80 ms either way)."""

_FLASHTALK_STEPS = (2, 4)
"""Numbers of steps that SoulX-FlashTalk's own code divides its schedule into evenly."""


@dataclass(frozen=True, kw_only=True, slots=True)
class AudioConfig:
    """Sizes of the adapter's audio branch.

    Attributes:
        layers: Wav2Vec2 layers stacked per feature (12 for base models).
        channels: Width of one Wav2Vec2 layer (768 for base models).
        hidden_dim: Width inside the audio projection.
        num_tokens: Audio tokens per speaker and latent frame.
        token_dim: Width of one audio token.
        norm_tokens: Whether the projection ends in a layer norm.
        norm_visual: Whether video tokens are normalised before they attend to audio (`norm_x`).
    """

    layers: int = 12
    channels: int = 768
    hidden_dim: int = 512
    num_tokens: int = 32
    token_dim: int = 768
    norm_tokens: bool = True
    norm_visual: bool = True

    def check_features(
        self,
        layers: int,
        channels: int,
        *,
        encoder: str = "The Wav2Vec2 model",
        adapter: str = "the adapter",
    ) -> None:
        """Check that the adapter was made for the features of a Wav2Vec2.

        Raises:
            InputError: If it was not; the message names `encoder` and `adapter`.
        """
        if (layers, channels) != (self.layers, self.channels):
            raise InputError(
                f"{encoder} gives {layers} layers of width {channels}, but {adapter} was made for "
                f"{self.layers} layers of width {self.channels}. Load chinese-wav2vec2-base "
                "(Kijai/wav2vec2_safetensors), or the adapter that fits."
            )


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelConfig:
    """Sizes of the Wan2.1 image-to-video transformer; `audio` is `None` without an adapter.

    Attributes:
        dim: Token width D.
        ffn_dim: Width inside the feed-forward layers.
        num_heads: Attention heads A; `dim / num_heads` is the head width and must be even.
        num_layers: Transformer blocks.
        in_channels: Latent channels in: 16 noisy + 4 mask + 16 condition.
        out_channels: Latent channels out.
        text_dim: Width of a text token.
        text_len: Text tokens; shorter prompts are padded with zero rows.
        image_dim: Width of a CLIP image token.
        freq_dim: Width of the sinusoidal time embedding.
        eps: Epsilon of every norm inside the blocks.
        audio: Sizes of the audio branch, or `None` for the base model alone.
    """

    dim: int = 5120
    ffn_dim: int = 13824
    num_heads: int = 40
    num_layers: int = 40
    in_channels: int = 36
    out_channels: int = 16
    text_dim: int = 4096
    text_len: int = 512
    image_dim: int = 1280
    freq_dim: int = 256
    eps: float = 1e-6
    audio: AudioConfig | None = None

    def __post_init__(self) -> None:
        if self.num_heads <= 0 or self.dim % self.num_heads or (self.dim // self.num_heads) % 2:
            raise WeightsError(
                f"A width of {self.dim} cannot be split into {self.num_heads} heads of even width. "
                "Give the head count in the file's metadata ('wan.attention.head_count' in a GGUF, "
                "'num_heads' in a safetensors file)."
            )

    @property
    def head_dim(self) -> int:
        """Width of one attention head."""
        return self.dim // self.num_heads


@dataclass(frozen=True, kw_only=True, slots=True)
class ApgConfig:
    """Adaptive projected guidance (arXiv 2410.02416), as upstream's `--use_apg`.

    Attributes:
        momentum: Weight of the running average; negative pushes away from it.
        norm_threshold: Largest norm of the guidance difference; 0 leaves it as it is.
    """

    momentum: float = -0.75
    norm_threshold: float = 55.0


@dataclass(frozen=True, kw_only=True, slots=True)
class SamplingConfig:
    """How one video is sampled. Defaults are upstream's for 480p.

    Attributes:
        method: Which upstream loop the weights were trained for; they look alike. FlashTalk's are
            distilled: 2 or 4 steps, no guidance, one speaker.
        steps: Sampling steps per segment.
        shift: Shift of the flow-matching schedule.
        text_guidance: Scale of the text guidance; 1 leaves it out.
        text_guidance_start: Share of the steps, 0 to 1, after which the text guidance begins.
        text_guidance_end: Share of the steps after which it ends; its pass is not run elsewhere.
        audio_guidance: Scale of the audio guidance; 1 leaves it out.
        audio_guidance_start: As for the text.
        audio_guidance_end: As for the text.
        audio_strength: Multiplier of the audio branch; 0 is the base model.
        segment_frames: Video frames sampled at once, 4n + 1.
        motion_frames: Frames a later segment takes over from the one before, 4n + 1.
        color_match: How far each frame's colours are pulled to the photo's, 0 to 1.
        apg: Adaptive projected guidance, or `None` for plain guidance.
        step_cache: Estimated relative change of the model's answer up to which a step reuses the
            last one; 0 runs the model at every step.
    """

    method: Method = "multitalk"
    steps: int = 40
    shift: float = 7.0
    text_guidance: float = 5.0
    text_guidance_start: float = 0.0
    text_guidance_end: float = 1.0
    audio_guidance: float = 4.0
    audio_guidance_start: float = 0.0
    audio_guidance_end: float = 1.0
    audio_strength: float = 1.0
    segment_frames: int = 81
    motion_frames: int = 25
    color_match: float = 1.0
    apg: ApgConfig | None = None
    step_cache: float = 0.0

    def __post_init__(self) -> None:
        self._check_method()
        for name, least, most in (
            ("steps", 1, 1000),
            ("shift", 0.01, 100),
            ("text_guidance", 0, 100),
            ("audio_guidance", 0, 100),
            ("text_guidance_start", 0, 1),
            ("text_guidance_end", 0, 1),
            ("audio_guidance_start", 0, 1),
            ("audio_guidance_end", 0, 1),
            ("audio_strength", 0, 10),
            ("color_match", 0, 1),
            ("step_cache", 0, 1),
        ):
            value = getattr(self, name)
            if not least <= value <= most:
                raise InputError(f"`{name}` is {value}; it must lie between {least} and {most}.")
        for name in ("text_guidance", "audio_guidance"):
            start, end = getattr(self, f"{name}_start"), getattr(self, f"{name}_end")
            if start >= end:
                raise InputError(
                    f"`{name}_start` is {start} and `{name}_end` is {end}; the end must be above "
                    f"the start. Set `{name}` to 1 to leave it out."
                )
        for name in ("segment_frames", "motion_frames"):
            value = getattr(self, name)
            if not 1 <= value <= MAX_SEGMENT_FRAMES or value % 4 != 1:
                nearest = 4 * min(max(value // 4, 1), MAX_SEGMENT_FRAMES // 4) + 1
                raise InputError(
                    f"`{name}` is {value}; it must be a multiple of 4, plus 1, and at most "
                    f"{MAX_SEGMENT_FRAMES}, such as {nearest}."
                )
        if self.motion_frames >= self.segment_frames:
            raise InputError(
                f"`motion_frames` is {self.motion_frames}, which leaves no new frame in a segment "
                f"of {self.segment_frames}. Lower `motion_frames`."
            )

    def check_speakers(self, count: int) -> None:
        """Check that the method can animate `count` speakers.

        Raises:
            InputError: If it cannot.
        """
        if self.method == "flashtalk" and count > 1:
            raise InputError(
                f"FlashTalk animates one speaker, and there are {count} voices. Give one voice, or "
                "another method and its weights."
            )

    def _check_method(self) -> None:
        if self.method not in get_args(Method):
            raise InputError(
                f"Method {self.method!r} is unknown. Choose 'multitalk', 'infinitetalk' or "
                "'flashtalk', the one your weights were trained for."
            )
        if self.method != "flashtalk":
            return
        unguided = self.text_guidance == self.audio_guidance == 1
        if not unguided or self.steps not in _FLASHTALK_STEPS:
            raise InputError(
                f"FlashTalk is distilled to 4 (or 2) steps without guidance, but `steps` is "
                f"{self.steps}, `text_guidance` {self.text_guidance} and `audio_guidance` "
                f"{self.audio_guidance}. Set them to 4, 1 and 1, and `shift` to 5, "
                "`segment_frames` to 33 and `motion_frames` to 5."
            )


DEFAULTS: Mapping[Method, SamplingConfig] = MappingProxyType(
    {
        "multitalk": SamplingConfig(),
        "infinitetalk": SamplingConfig(method="infinitetalk", motion_frames=9),
        "flashtalk": SamplingConfig(
            method="flashtalk",
            steps=4,
            shift=5.0,
            text_guidance=1.0,
            audio_guidance=1.0,
            segment_frames=33,
            motion_frames=5,
        ),
    }
)
"""Settings of each method's own code at 480p: the command lines of MultiTalk and InfiniteTalk, and
SoulX-FlashTalk `flash_talk/configs/infer_params.yaml`."""
