"""One video from request to file: read and check inputs, encode them, load, sample, write.

Mistakes are found early: a wrong photo, voice or weights file is reported before the long loading,
and the video file is opened before the long sampling. `multitalk_core.engine.Engine` is the method.
"""

from __future__ import annotations

import contextlib
import importlib.util
import logging
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from transformers import Wav2Vec2Model

if sys.platform != "win32":
    import resource

from ..multitalk_core.config import FPS, SamplingConfig
from ..multitalk_core.engine import Step
from ..multitalk_core.errors import InputError
from ..multitalk_core.geometry import Size, video_size
from ..multitalk_core.inputs.features import audio_features
from ..multitalk_core.inputs.photo import to_photo
from ..multitalk_core.inputs.scene import Picture, Scene, Text, compose
from ..multitalk_core.inputs.speech import listen
from ..multitalk_core.inputs.timeline import arrange_recordings
from ..multitalk_core.method.guidance import needs_negative_text, passes_needed
from ..multitalk_core.method.segments import TAIL_FRAMES
from ..multitalk_core.model.attention import Attends
from ..multitalk_core.model.backends import video_attention
from ..multitalk_core.model.lrope import MAX_SPEAKERS
from ..wan_gguf_loader.int8 import multiplies_int8
from . import memory
from .borrowed import held_bytes, on_device
from .encoders import load_image_encoder, load_text_encoder
from .media import read_mask, read_photo, read_voice
from .placement import PlacedEngine
from .request import Request
from .vae import load_vae, vae_width
from .video import VideoWriter, require_target
from .weights import OpenFiles

_log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True, slots=True)
class Summary:
    """Facts about the finished video; `--json` writes them.

    Attributes:
        attention: Attention backend of the video tokens: `torch`, `flash` or `sage`.
        loras: What each LoRA changed, in a line.
        streamed: Whether the transformer's blocks were streamed from main memory.
        tiled: Whether the VAE worked in tiles.
        timings: Seconds of each stage.
        peak_memory_bytes: Of the card, on a CPU of the process; `None` if unknown.
    """

    output: str
    frames: int
    fps: int
    seconds: float
    width: int
    height: int
    seed: int
    device: str
    dtype: str
    attention: str
    loras: list[str]
    streamed: bool
    tiled: bool
    timings: dict[str, float]
    peak_memory_bytes: int | None


def workload(
    files: OpenFiles, sampling: SamplingConfig, *, size: Size, dtype: torch.dtype
) -> memory.Workload:
    """Collect from the files' headers what determines the memory of a run."""
    return memory.Workload(
        size=size,
        num_frames=sampling.segment_frames,
        dim=files.config.dim,
        ffn_dim=files.config.ffn_dim,
        num_passes=len(
            passes_needed(
                text_guidance=sampling.text_guidance, audio_guidance=sampling.audio_guidance
            )
        ),
        dtype=dtype,
        transformer=files.transformer_weights(dtype),
        fused=importlib.util.find_spec("triton") is not None,
        vae_width=vae_width(files.vae),
        vae_bytes=held_bytes(files.vae, dtype),
        image_encoder_bytes=held_bytes(files.clip_vision, dtype),
    )


class _VoiceEncoder:
    """Wav2Vec2, moved to the device for each track and back."""

    def __init__(self, model: Wav2Vec2Model, device: torch.device) -> None:
        self._model = model
        self._device = device

    def features(self, track: Tensor) -> Tensor:
        with on_device(self._model, self._device):
            found = audio_features(self._model, track.to(self._device), tail_frames=TAIL_FRAMES)
        return found.cpu()


class _Stopwatch:
    """Collects the seconds of each stage."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextlib.contextmanager
    def stage(self, name: str) -> Iterator[None]:
        began = time.perf_counter()
        yield
        self.seconds[name] = round(time.perf_counter() - began, 3)
        _log.info("%s: %.1f s", name, self.seconds[name])


def run(request: Request, *, on_step: Callable[[Step], None] | None = None) -> Summary:
    """Make the video; `on_step` is called after every sampling step and may raise to stop.

    Raises:
        MultiTalkError: If an input, a setting or a file cannot be used, or the disk is full.
        GGUFError: If a weights file is damaged.
    """
    device = _device(request.device)
    dtype = _dtype(request, device)
    _check_precision(request, device=device, dtype=dtype)
    attention = video_attention(request.attention, device=device, dtype=dtype)
    watch = _Stopwatch()
    with watch.stage("read"):
        require_target(request.output)
        _check_speakers(request)
        picture = _read_picture(request)
        room = memory.total_bytes(device)
        voices = arrange_recordings(
            [read_voice(speaker.audio, memory=room) for speaker in request.speakers],
            mode=request.mode,
            starts=[speaker.start for speaker in request.speakers],
            memory=room,
        )
        files = OpenFiles(request.files)
        plan = _plan(files, request, size=picture.size, device=device, dtype=dtype)
    with watch.stage("listen"):
        encoder = _VoiceEncoder(files.load_wav2vec2(), device)
        timeline = voices.timeline
        speech = listen(timeline.tracks, encoder, num_frames=timeline.num_frames)
        del encoder
    with watch.stage("encode_text"):
        text = _encode_text(files, request, device=device, dtype=dtype)
    with watch.stage("load"):
        engine = PlacedEngine(
            files.load_transformer(dtype, precision=request.precision),
            load_vae(files.vae, device=device, dtype=dtype),
            load_image_encoder(files.clip_vision, device=device, dtype=dtype),
            device=device,
            dtype=dtype,
            plan=plan,
            may_change=request.offload == "auto",
            attends=Attends(video=attention.attend),
        )
    scene = Scene(picture=picture, speech=speech, text_at=lambda _: text)
    writer = VideoWriter(request.output, size=picture.size, sound=voices.sound)
    video = engine.segments(scene, request.sampling, seed=request.seed, on_step=on_step)
    with watch.stage("sample"), writer:
        for finished in video:
            writer.write(finished.frames)
    return Summary(
        output=str(request.output),
        frames=writer.num_frames,
        fps=FPS,
        seconds=writer.num_frames / FPS,
        width=picture.size.width,
        height=picture.size.height,
        seed=request.seed,
        device=str(device),
        dtype=str(dtype).removeprefix("torch."),
        attention=attention.name,
        loras=files.lora_reports,
        streamed=engine.streamed,
        tiled=engine.tiled,
        timings=watch.seconds,
        peak_memory_bytes=_peak_memory(device),
    )


def _device(name: str | None) -> torch.device:
    if name is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(1, device=device).cpu()
    except (RuntimeError, AssertionError, NotImplementedError) as reason:
        raise InputError(
            f"The device {name!r} cannot be used here. Give cpu, or cuda on a machine with a card "
            "and a torch build for it."
        ) from reason
    return device


def _dtype(request: Request, device: torch.device) -> torch.dtype:
    default = "float32" if device.type == "cpu" else "bfloat16"
    dtype: torch.dtype = getattr(torch, request.dtype or default)
    return dtype


def _check_precision(request: Request, *, device: torch.device, dtype: torch.dtype) -> None:
    if request.precision == "int8" and (dtype == torch.float32 or not multiplies_int8(device)):
        raise InputError(
            f"The precision int8 does not work on {device} in {str(dtype).removeprefix('torch.')}: "
            "it needs bfloat16, on the CPU or a CUDA card of Turing or newer. Give --dtype "
            "bfloat16 on such a device, or leave out --precision."
        )


def _check_speakers(request: Request) -> None:
    count = len(request.speakers)
    if not 1 <= count <= MAX_SPEAKERS:
        raise InputError(
            f"There are {count} voices; one or two speakers are possible. "
            "Give --audio once or twice."
        )
    request.sampling.check_speakers(count)


def _read_picture(request: Request) -> Picture:
    photo = to_photo(read_photo(request.image))
    photo_size = Size(*photo.shape[:2])
    size = video_size(photo_size, wanted=request.size)
    regions = [
        read_mask(speaker.region) if isinstance(speaker.region, Path) else speaker.region
        for speaker in request.speakers
    ]
    return compose(photo, regions, size=size)


def _encode_text(
    files: OpenFiles, request: Request, *, device: torch.device, dtype: torch.dtype
) -> Text:
    streamed = request.offload == "blocks"
    if request.offload == "auto":
        needed = held_bytes(files.text_encoder, dtype) * memory.ENCODER_SLACK
        streamed = needed > memory.free_bytes(device)
    encoder = load_text_encoder(files.text_encoder, device=device, dtype=dtype, streamed=streamed)
    prompts = [request.prompt]
    if needs_negative_text(request.sampling.text_guidance):
        prompts.append(request.negative_prompt)
    encoded = encoder.encode(prompts)
    return Text(encoded[0], encoded[1] if len(encoded) > 1 else None)


def _plan(
    files: OpenFiles, request: Request, *, size: Size, device: torch.device, dtype: torch.dtype
) -> memory.Plan:
    """Choose the memory plan from the files' headers, before weights are loaded."""
    if device.type == "cpu" or request.offload == "none":
        return memory.RESIDENT
    if request.offload == "blocks":
        return memory.STREAMED
    work = workload(files, request.sampling, size=size, dtype=dtype)
    return memory.choose(work, free=memory.free_bytes(device))


def _peak_memory(device: torch.device) -> int | None:
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    if sys.platform == "win32":
        return None
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
