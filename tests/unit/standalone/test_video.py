"""The MP4 writer: what a player finds in the file, and what is left behind when writing fails."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import av
import numpy as np
import pytest
import torch
from torch import Tensor

from comfyui_multitalk.multitalk_core.errors import InputError, MultiTalkError
from comfyui_multitalk.multitalk_core.geometry import Size
from comfyui_multitalk.multitalk_core.inputs.timeline import Sound
from comfyui_multitalk.standalone.video import VideoWriter

SIZE = Size(32, 48)


class Played(NamedTuple):
    frames: list[np.ndarray]
    sound: np.ndarray
    sample_rate: int
    sound_seconds: float
    picture_seconds: float
    first_sound_second: float


def _play(path: Path) -> Played:
    with av.open(str(path)) as container:
        video, audio = container.streams.video[0], container.streams.audio[0]
        assert (video.average_rate, video.pix_fmt, video.codec_context.name) == (
            25,
            "yuv420p",
            "h264",
        )
        assert audio.codec_context.name == "aac"
        sound_seconds = float(audio.duration * audio.time_base)
        picture_seconds = float(video.duration * video.time_base)
        frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
    with av.open(str(path)) as container:
        decoded = [(frame.time, frame.to_ndarray()) for frame in container.decode(audio=0)]
    sound = np.concatenate([part for time, part in decoded if time >= 0], axis=1)
    first = min(time for time, _ in decoded if time >= 0)
    return Played(
        frames, sound, audio.codec_context.sample_rate, sound_seconds, picture_seconds, first
    )


def _write(path: Path, frames: Tensor, waveform: Tensor, sample_rate: int) -> None:
    with VideoWriter(path, size=SIZE, sound=Sound(waveform, sample_rate)) as writer:
        for part in frames.split(9, dim=1):
            writer.write(part)


def _grey(num_frames: int) -> Tensor:
    return torch.zeros(3, num_frames, *SIZE)


def _tone(seconds: float, sample_rate: int, *, channels: int = 1) -> Tensor:
    time = torch.arange(round(seconds * sample_rate)) / sample_rate
    return (0.5 * torch.sin(2 * torch.pi * 440 * time)).expand(1, channels, -1)


@pytest.mark.parametrize(("sample_rate", "channels"), [(16_000, 1), (44_100, 2), (48_000, 1)])
@pytest.mark.parametrize("seconds", [0.5, 3.0])
def test_video_sound_is_as_long_as_the_picture(
    tmp_path: Path, sample_rate: int, channels: int, seconds: float
) -> None:
    path = tmp_path / "out.mp4"
    _write(path, _grey(37), _tone(seconds, sample_rate, channels=channels), sample_rate)
    played = _play(path)
    assert len(played.frames) == 37
    assert played.frames[0].shape == (*SIZE, 3)
    assert played.sample_rate == sample_rate
    assert played.picture_seconds == pytest.approx(37 / 25)
    assert played.sound_seconds == pytest.approx(37 / 25, abs=1.5 / sample_rate)
    assert abs(played.sound.shape[1] - 37 / 25 * sample_rate) <= 1024
    assert played.first_sound_second == 0


def test_video_sound_stays_in_step_with_the_picture(tmp_path: Path) -> None:
    """A click and a flash at 1 s are heard and seen at 1 s."""
    frames, waveform = _grey(50) - 1, torch.zeros(1, 1, 32_000)
    frames[:, 25:] = 1
    waveform[..., 16_000:16_400] = 0.9
    _write(tmp_path / "out.mp4", frames, waveform, 16_000)
    played = _play(tmp_path / "out.mp4")
    assert [frame.mean() > 128 for frame in played.frames] == [False] * 25 + [True] * 25
    assert abs(int(np.argmax(np.abs(played.sound[0]) > 0.3)) - 16_000) < 160


def test_video_keeps_the_colours(tmp_path: Path) -> None:
    colour = torch.tensor([200, 60, 30])
    frames = (colour / 127.5 - 1)[:, None, None, None].expand(3, 3, *SIZE)
    _write(tmp_path / "out.mp4", frames, _tone(0.2, 16_000), 16_000)
    with av.open(str(tmp_path / "out.mp4")) as container:
        context = container.streams.video[0].codec_context
        frame = next(container.decode(video=0)).reformat(format="rgb24", src_colorspace="ITU709")
        assert (context.colorspace, context.color_primaries, context.color_trc) == (1, 1, 1)
    error = np.abs(frame.to_ndarray()[16, 24].astype(int) - colour.numpy())
    assert error.max() <= 4


def test_video_values_outside_the_range_are_clamped(tmp_path: Path) -> None:
    frames = torch.stack([torch.full((3, *SIZE), 1.5), torch.full((3, *SIZE), -1.5)], dim=1)
    _write(tmp_path / "out.mp4", frames, _tone(0.2, 16_000), 16_000)
    white, black = _play(tmp_path / "out.mp4").frames
    assert white.min() > 250
    assert black.max() < 5


@pytest.mark.parametrize("stop", [KeyboardInterrupt, ValueError])
def test_video_stopped_half_way_leaves_the_older_file(
    tmp_path: Path, stop: type[BaseException]
) -> None:
    path = tmp_path / "out.mp4"
    path.write_bytes(b"older")

    def write_half() -> None:
        with VideoWriter(path, size=SIZE, sound=Sound(_tone(1, 16_000), 16_000)) as writer:
            writer.write(_grey(9))
            raise stop

    with pytest.raises(stop):
        write_half()
    assert path.read_bytes() == b"older"
    assert list(tmp_path.iterdir()) == [path]


def test_video_without_frames_is_not_written(tmp_path: Path) -> None:
    with pytest.raises(MultiTalkError, match="no frames"):
        _write(tmp_path / "out.mp4", _grey(0), _tone(1, 16_000), 16_000)
    assert not list(tmp_path.iterdir())


_FILL_UP = """
import pathlib, resource, sys
import torch
from comfyui_multitalk.multitalk_core.inputs.timeline import Sound
from comfyui_multitalk.standalone.video import VideoWriter
folder = pathlib.Path(sys.argv[1])
noise = torch.rand(3, 50, 64, 64, generator=torch.Generator().manual_seed(0)) * 2 - 1
sound = noise.reshape(1, -1)[:, :32000] / 2

def write(path):
    with VideoWriter(path, size=(64, 64), sound=Sound(sound[None], 16000)) as writer:
        writer.write(noise)

write(folder / "whole.mp4")
size = (folder / "whole.mp4").stat().st_size
limit = int(size * float(sys.argv[2])) - 1
resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
try:
    write(folder / "cut.mp4")
except Exception as error:
    sys.exit(f"{type(error).__name__}: {error}")
"""


@pytest.mark.parametrize("share", [0.001, 0.05, 0.5, 1])
def test_video_on_a_full_disk_says_so_and_leaves_nothing(
    tmp_path: Path, package_path: Path, share: float
) -> None:
    """The disk is full at the start, in the first frames, half way, and at the very last byte."""
    done = subprocess.run(
        [sys.executable, "-c", _FILL_UP, str(tmp_path), str(share)],
        env={"PYTHONPATH": str(package_path), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    assert "MultiTalkError: The disk is full" in done.stderr
    assert "Traceback" not in done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["whole.mp4"]


@pytest.mark.parametrize(
    ("name", "says"),
    [("out.avi", "end in '.mp4'"), ("none/out.mp4", "no folder"), ("folder.mp4", "is a folder")],
)
def test_video_impossible_target_is_refused(tmp_path: Path, name: str, says: str) -> None:
    (tmp_path / "folder.mp4").mkdir()
    with pytest.raises(InputError, match=says):
        VideoWriter(tmp_path / name, size=SIZE, sound=Sound(_tone(1, 16_000), 16_000))


@pytest.mark.parametrize("name", ["take:2.mp4", "n" * 251 + ".mp4"], ids=["colon", "255 bytes"])
def test_video_of_an_unusual_relative_name_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.chdir(tmp_path)
    _write(Path(name), _grey(9), _tone(0.36, 16_000), 16_000)
    assert [path.name for path in tmp_path.iterdir()] == [name]
    assert len(_play(tmp_path / name).frames) == 9
