"""The `multitalk` command on the tiny set, for tests."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import av
import numpy as np
import torch

if TYPE_CHECKING:
    from comfyui_multitalk.dev.make_tiny import TinySet


def arguments(tiny: TinySet, *extra: str | Path, **replaced: str | Path | None) -> list[str]:
    """Give the command line of a small video; `replaced` changes or (`None`) drops options."""
    options: dict[str, str | Path | None] = {
        "prompt": "a woman talks",
        "base": tiny.base,
        "adapter": tiny.adapter,
        "wav2vec": tiny.wav2vec2,
        "vae": tiny.vae,
        "text_encoder": tiny.text_encoder,
        "clip_vision": tiny.clip_vision,
        "preset": "quick",
        "steps": "1",
        "size": "32x32",
        "segment_frames": "9",
        "motion_frames": "5",
        "device": "cpu",
    }
    line = ["generate", "--quiet"]
    for name, value in {**options, **replaced}.items():
        if value is not None:
            line += [f"--{name.replace('_', '-')}", str(value)]
    return [*line, *map(str, extra)]


class Played(NamedTuple):
    """What a player finds in a video file."""

    frames: list[np.ndarray]
    fps: float
    picture_seconds: float
    sound_seconds: float
    sound: np.ndarray
    sample_rate: int
    codecs: tuple[str, str, str]


def play(path: Path) -> Played:
    """Decode a video and its sound."""
    with av.open(str(path)) as container:
        video, audio = container.streams.video[0], container.streams.audio[0]
        facts = (
            float(video.average_rate),
            float(video.duration * video.time_base),
            float(audio.duration * audio.time_base),
        )
        codecs = (video.codec_context.name, video.pix_fmt, audio.codec_context.name)
        sample_rate = audio.codec_context.sample_rate
        frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
    with av.open(str(path)) as container:
        heard = [frame.to_ndarray() for frame in container.decode(audio=0) if frame.time >= 0]
    return Played(frames, *facts, np.concatenate(heard, axis=1), sample_rate, codecs)


def write_voice(path: Path, waveform: torch.Tensor, *, sample_rate: int = 16_000) -> Path:
    """Write a recording `(C, N)` as 32-bit float WAV, in which NaN survives."""
    layout = "mono" if len(waveform) == 1 else "stereo"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("pcm_f32le", rate=sample_rate, layout=layout)
        interleaved = waveform.float().T.reshape(1, -1).contiguous().numpy()
        frame = av.AudioFrame.from_ndarray(interleaved, format="flt", layout=layout)
        frame.sample_rate = sample_rate
        container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


def tone(seconds: float, *, pitch: float = 220.0, sample_rate: int = 16_000) -> torch.Tensor:
    """Give a swelling tone `(1, N)`, a stand-in for a voice."""
    time = torch.arange(round(seconds * sample_rate)) / sample_rate
    swell = 0.3 + 0.2 * torch.sin(2 * torch.pi * 3 * time)
    return (swell * torch.sin(2 * torch.pi * pitch * time))[None]
