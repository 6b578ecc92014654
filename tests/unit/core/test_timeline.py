"""Timelines and the video's sound; the voices are sines."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from comfyui_multitalk.multitalk_core.errors import InputError
from comfyui_multitalk.multitalk_core.inputs.timeline import (
    Mode,
    Timeline,
    arrange,
    arrange_recordings,
    mix,
)
from comfyui_multitalk.multitalk_core.inputs.voices import Recording, prepare_voice

RATE = 16000


def sine(seconds: float, *, rate: int = RATE, frequency: float = 997.0) -> Tensor:
    time = torch.arange(round(seconds * rate)) / rate
    return torch.sin(2 * math.pi * frequency * time)


def recorded(waveform: Tensor, rate: int = RATE) -> Recording:
    return Recording(waveform, rate, "Speaker 2's voice")


def test_arrange_together_pads_the_shorter_voice() -> None:
    first, second = sine(1.0), sine(0.5)
    timeline = arrange([first, second], mode="together", starts=[0.0, 0.25])
    assert timeline.starts == (0, 4000)
    assert timeline.stops == (16000, 12000)
    assert timeline.num_frames == 25
    assert torch.equal(timeline.tracks[0], first)
    assert torch.equal(timeline.tracks[1][4000:12000], second)
    assert not bool(timeline.tracks[1][:4000].any())
    assert not bool(timeline.tracks[1][12000:].any())


def test_arrange_in_turn_lets_one_speaker_end_first() -> None:
    first, second = sine(1.0), sine(0.5)
    timeline = arrange([first, second], mode="in_turn", starts=[0.5, 0.25])
    assert timeline.starts == (8000, 28000)
    assert timeline.stops == (24000, 36000)
    assert [len(track) for track in timeline.tracks] == [36000, 36000]
    assert torch.equal(timeline.tracks[0][8000:24000], first)
    assert torch.equal(timeline.tracks[1][28000:], second)
    assert not bool((timeline.tracks[0] * timeline.tracks[1]).any())


@pytest.mark.parametrize(("samples", "frames"), [(6400, 10), (6401, 11), (36480, 57), (36481, 58)])
def test_arrange_video_lasts_as_long_as_the_sound(samples: int, frames: int) -> None:
    timeline = arrange([torch.zeros(samples)], mode="together", starts=[0.0])
    assert timeline.num_frames == frames


@pytest.mark.parametrize(
    ("num_voices", "mode", "starts", "message"),
    [
        (0, "together", [], "no speaker"),
        (2, "together", [0.0], "2 voices but 1 starts"),
        (1, "in_turn", [-1.0], r"Speaker 1 starts at -1\.0 s"),
        (1, "in_turn", [float("nan")], "Speaker 1 starts at nan s"),
        (2, "in_turn", [0.0, 36_000.0], r"Speaker 2 starts at 36000\.0 s.*between 0 and 3600 s"),
        (1, "para", [0.0], "'para' is unknown"),
    ],
    ids=["no_voice", "starts", "negative", "nan", "late", "mode"],
)
def test_arrange_of_bad_settings_says_what_is_wrong(
    num_voices: int, mode: Mode, starts: list[float], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        arrange([sine(0.5)] * num_voices, mode=mode, starts=starts)


def test_mix_of_one_recording_keeps_its_samples() -> None:
    recording = torch.stack((0.5 * sine(1.0, rate=44100), 0.25 * sine(1.0, rate=44100)))
    before = recording.clone()
    sound = mix([recorded(recording, 44100)], starts=[0], num_frames=25)
    assert sound.sample_rate == 44100
    assert torch.equal(sound.waveform, recording[None])
    assert torch.equal(recording, before)


@pytest.mark.parametrize("frames", [24, 26])
def test_mix_lasts_as_long_as_the_picture(frames: int) -> None:
    sound = mix([recorded(sine(1.0, rate=48000), 48000)], starts=[0], num_frames=frames)
    assert sound.waveform.shape == (1, 1, frames * 1920)
    assert not bool(sound.waveform[..., 48000:].any())


def test_mix_takes_the_highest_rate_and_most_channels() -> None:
    low = 0.25 * sine(1.0, frequency=200.0)
    high = torch.zeros(2, 48000)
    high[1] = 0.5
    sound = mix([recorded(low[None, None]), recorded(high, 48000)], starts=[8000, 0], num_frames=38)
    assert sound.sample_rate == 48000
    assert sound.waveform.shape == (1, 2, 38 * 1920)
    left, right = sound.waveform[0]
    late = 0.25 * sine(1.0, rate=48000, frequency=200.0)
    assert torch.allclose(left[24500:71500], late[500:47500], atol=2e-3)
    assert not bool(left[:23000].abs().gt(1e-3).any())
    assert torch.allclose(right[:23000], torch.tensor(0.5), atol=1e-3)


def test_mix_of_many_channels_is_their_mean() -> None:
    surround = torch.stack([0.1 * i * torch.ones(RATE) for i in range(6)])
    alone = mix([recorded(surround)], starts=[0], num_frames=25)
    assert alone.waveform.shape == (1, 1, RATE)
    assert torch.allclose(alone.waveform, torch.tensor(0.25))
    stereo = torch.zeros(2, RATE)
    stereo[0] = 0.5
    both = mix([recorded(surround), recorded(stereo)], starts=[0, 0], num_frames=25)
    assert torch.allclose(both.waveform[0, :, 0], torch.tensor([0.75, 0.25]))


@pytest.mark.parametrize(("rate", "mixed"), [(192_000, 48_000), (37_800, 48_000), (8000, 8000)])
def test_mix_has_a_rate_that_video_files_take(rate: int, mixed: int) -> None:
    recording = sine(0.4, rate=rate, frequency=200.0)
    sound = mix([recorded(recording, rate)], starts=[0], num_frames=10)
    assert sound.sample_rate == mixed
    inner = slice(mixed // 10, -mixed // 10)
    direct = sine(0.4, rate=mixed, frequency=200.0)
    assert torch.allclose(sound.waveform[0, 0, inner], direct[inner], atol=2e-3)


def test_mix_too_loud_is_scaled_down_as_a_whole() -> None:
    tone = 0.8 * sine(1.0)
    sound = mix([recorded(tone)] * 2, starts=[0, 0], num_frames=25)
    assert float(sound.waveform.abs().max()) == pytest.approx(1.0)
    assert torch.allclose(sound.waveform[0, 0], tone / tone.abs().max(), atol=1e-6)


def test_mix_cuts_what_starts_after_the_end() -> None:
    sound = mix([recorded(sine(0.5))], starts=[RATE], num_frames=10)
    assert torch.equal(sound.waveform, torch.zeros(1, 1, 6400))


def test_arrange_recordings_prepares_arranges_and_mixes() -> None:
    recordings = [
        recorded(0.5 * sine(1.0, rate=48000), 48000),
        recorded(torch.stack((sine(0.5), 0.5 * sine(0.5)))),
    ]
    arrangement = arrange_recordings(recordings, mode="in_turn", starts=[0.5, 0.25])
    voices = [prepare_voice(recording) for recording in recordings]
    timeline: Timeline = arrange(voices, mode="in_turn", starts=[0.5, 0.25])
    assert arrangement.timeline.starts == timeline.starts == (8000, 28000)
    assert all(map(torch.equal, arrangement.timeline.tracks, timeline.tracks))
    sound = mix(recordings, starts=timeline.starts, num_frames=timeline.num_frames)
    assert sound.sample_rate == arrangement.sound.sample_rate == 48000
    assert torch.equal(arrangement.sound.waveform, sound.waveform)


def test_arrange_recordings_refuses_bad_sound_of_one_speaker_by_name() -> None:
    bad = sine(0.5)
    bad[7] = float("nan")
    with pytest.raises(InputError, match="Speaker 2's voice holds NaN"):
        arrange_recordings([recorded(bad)], mode="together", starts=[0.0])


def test_arrange_recordings_longer_than_memory_allows_gives_the_numbers() -> None:
    with pytest.raises(
        InputError,
        match=r"lasts 100 s, .* needs 2\.0 GB of memory; there are 1\.0 GB, enough for 50 s",
    ):
        arrange_recordings([recorded(sine(1.0))], mode="together", starts=[99.0], memory=1e9)
