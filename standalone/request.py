"""The request of the command: files, speakers and settings of one video."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, NamedTuple

from ..multitalk_core.config import DEFAULTS, Method, SamplingConfig
from ..multitalk_core.errors import InputError
from ..multitalk_core.geometry import Box, Resolution, Size
from ..multitalk_core.inputs.timeline import Mode
from ..multitalk_core.model.backends import AttentionName
from ..wan_gguf_loader.ops import Precision

Preset = Literal["quality", "quick"]
Offload = Literal["auto", "none", "blocks"]

NEGATIVE_PROMPT = (
    "bright tones, overexposed, static, blurred details, subtitles, style, works, paintings, "
    "images, static, overall gray, worst quality, low quality, JPEG compression residue, ugly, "
    "incomplete, extra fingers, poorly drawn hands, poorly drawn faces, deformed, disfigured, "
    "misshapen limbs, fused fingers, still picture, messy background, three legs, many people in "
    "the background, walking backwards"
)
"""Upstream's, in MultiTalk `wan/configs/wan_multitalk_14B.py`."""


class Lora(NamedTuple):
    """A LoRA file and its strength."""

    path: Path
    strength: float


class SpeakerFiles(NamedTuple):
    """One speaker's voice, and where the speaker is in the photo.

    Attributes:
        audio: File of the recording.
        region: Mask file or box of the speaker in the photo; `None` for the default place.
        start: Seconds of silence before the voice.
    """

    audio: Path
    region: Path | Box | None
    start: float


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelFiles:
    """The weights files. Without an `adapter`, the base must contain one."""

    base: Path
    adapter: Path | None
    loras: tuple[Lora, ...]
    wav2vec2: Path
    vae: Path
    text_encoder: Path
    clip_vision: Path


@dataclass(frozen=True, kw_only=True, slots=True)
class Request:
    """One video.

    Attributes:
        image: Photo file.
        speakers: Voices in order.
        mode: Whether the voices start `together` or follow each other `in_turn`.
        prompt: What the video shows.
        negative_prompt: What it must not show; unused if the text guidance is 1.
        files: The weights.
        sampling: How to sample.
        size: A bucket table, an exact size, or the longest side in pixels.
        seed: Seed of all noise.
        device: Where to compute, such as `cuda`; `None` takes a CUDA card if there is one.
        dtype: `float32` or `bfloat16`; `None` takes bfloat16 on a card and float32 on a CPU.
        offload: Whether transformer and text encoder are streamed from main memory in blocks.
        precision: Number format of the transformer's large matrix products.
        attention: Attention backend among video tokens.
        output: The video file.
    """

    image: Path
    speakers: tuple[SpeakerFiles, ...]
    mode: Mode
    prompt: str
    negative_prompt: str
    files: ModelFiles
    sampling: SamplingConfig
    size: Resolution | Size | int
    seed: int
    device: str | None
    dtype: Literal["float32", "bfloat16"] | None
    offload: Offload
    precision: Precision
    attention: AttentionName
    output: Path


def default_sampling(
    method: Method, preset: Preset, *, size: Resolution | Size | int
) -> SamplingConfig:
    """Return the sampling settings of a method and a preset.

    Args:
        method: The method that the weights were trained for.
        preset: `quality` has the settings of the method's own code; `quick` is for a distilled
            LoRA.
        size: Size of the video; MultiTalk and InfiniteTalk use a larger shift at 720p.

    Raises:
        InputError: If the method has no such preset.
    """
    config = DEFAULTS[method]
    if method == "flashtalk":
        if preset == "quick":
            raise InputError(
                "--preset quick is for a distilled LoRA; FlashTalk is distilled itself. Leave it "
                "out with --method flashtalk."
            )
        return config
    if preset == "quick":
        return replace(config, steps=4, shift=2.0, text_guidance=1.0, audio_guidance=2.0)
    return replace(config, shift=11.0) if size == "720p" else config
