"""Recordings as LoadAudio gives them, made from an example's voice."""

from __future__ import annotations

import struct
import wave
from pathlib import Path

import av
import numpy as np
import numpy.typing as npt

from comfyui_multitalk.tests.host import graphs

Samples = npt.NDArray[np.int16]
SECONDS = 1.5


def add_sounds(folder: Path) -> None:
    """Write one voice as every kind of file."""
    voice = _voice(rate=48_000)
    nothing = np.zeros_like(voice)
    write(folder / "mono_48k.wav", [voice], rate=48_000)
    write(folder / "left_48k.wav", [voice, nothing], rate=48_000)
    write(folder / "right_48k.wav", [nothing, voice], rate=48_000)
    write(folder / "opposite.wav", [voice, -voice], rate=48_000)
    write(folder / "silence.wav", [nothing, nothing], rate=48_000)
    write(
        folder / "surround.wav", [nothing, nothing, voice, nothing, nothing, nothing], rate=48_000
    )
    write(folder / "studio_96k.wav", [_voice(rate=96_000)] * 2, rate=96_000)
    write(folder / "odd_rate.wav", [_voice(rate=37_800)], rate=37_800)
    write(folder / "long.wav", [np.tile(_voice(rate=8000), 60)], rate=8000)
    write(
        folder / "clip.wav",
        [voice[: int(0.61 * 48_000)], nothing[: int(0.61 * 48_000)]],
        rate=48_000,
    )
    stereo = [_voice(rate=44_100)] * 2
    write(folder / "stereo_44k.wav", stereo, rate=44_100)
    for form, codec in (("flac", "flac"), ("mp3", "libmp3lame")):
        encode(folder / f"stereo_44k.{form}", stereo, rate=44_100, codec=codec)


def write(path: Path, channels: list[Samples], *, rate: int) -> None:
    """Write a WAV of 16-bit channels."""
    with wave.open(str(path), "wb") as file:
        file.setparams((len(channels), 2, rate, 0, "NONE", ""))
        file.writeframes(np.stack(channels, axis=1).tobytes())


def encode(path: Path, channels: list[Samples], *, rate: int, codec: str) -> None:
    """Write a file of another format; stereo."""
    with av.open(str(path), "w") as file:
        stream = file.add_stream(codec, rate=rate, layout="stereo")
        packed = np.stack(channels, axis=1).reshape(1, -1)
        frame = av.AudioFrame.from_ndarray(packed, format="s16", layout="stereo")
        frame.sample_rate = rate
        resampler = av.AudioResampler(format=stream.format, layout="stereo", rate=rate)
        for part in (*resampler.resample(frame), None):
            file.mux(stream.encode(part))


def write_nan(path: Path) -> None:
    """Write 0.6 seconds of NaN as a 32-bit float WAV."""
    data = struct.pack("<f", float("nan")) * 9600
    form = struct.pack("<4sIHHIIHH", b"fmt ", 16, 3, 1, 16000, 64000, 4, 32)
    riff = form + struct.pack("<4sI", b"data", len(data)) + data
    path.write_bytes(struct.pack("<4sI4s", b"RIFF", 4 + len(riff), b"WAVE") + riff)


def read(path: Path) -> tuple[npt.NDArray[np.float32], int]:
    """Read a WAV of 16-bit channels: `(C, N)` in [-1, 1], and its rate."""
    with wave.open(str(path)) as file:
        packed = np.frombuffer(file.readframes(file.getnframes()), dtype=np.int16)
        channels = packed.reshape(-1, file.getnchannels()).T.astype(np.float32) / 32768
        return np.ascontiguousarray(channels), file.getframerate()


def _voice(*, rate: int) -> Samples:
    """Give the first seconds of an example at another rate, by the nearest sample."""
    channels, source_rate = read(graphs.ROOT / "workflows" / "inputs" / "voice.wav")
    nearest = (np.arange(int(SECONDS * rate)) * source_rate / rate).astype(int)
    return (channels[0, nearest] * 32767).astype(np.int16)
