"""The request of the command: files, speakers and settings of one video."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple

from ..multitalk_core.config import Method, SamplingConfig
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

MOTION_FRAMES: dict[Method, int] = {"multitalk": 25, "infinitetalk": 9}
"""Frames repeated from the segment before: the default of each upstream command line."""


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


def preset_sampling(preset: Preset, *, size: Resolution | Size | int) -> dict[str, float]:
    """Return the sampling settings of a preset.

    Args:
        preset: `quality` has upstream's settings; `quick` is for a distilled LoRA.
        size: Size of the video; upstream uses a larger shift at 720p.
    """
    if preset == "quick":
        return {"steps": 4, "shift": 2.0, "text_guidance": 1.0, "audio_guidance": 2.0}
    shift = 11.0 if size == "720p" else 7.0
    return {"steps": 40, "shift": shift, "text_guidance": 5.0, "audio_guidance": 4.0}
