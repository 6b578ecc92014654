"""Voices, timelines and the video's sound; the voices are sines."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from comfyui_multitalk.multitalk_core.errors import InputError
from comfyui_multitalk.multitalk_core.inputs.voices import (
    Mode,
    arrange,
    check_voice,
    mix,
    prepare_voice,
)

RATE = 16000


def sine(seconds: float, *, rate: int = RATE, frequency: float = 997.0) -> Tensor:
    time = torch.arange(round(seconds * rate)) / rate
    return torch.sin(2 * math.pi * frequency * time)


def test_prepare_voice_normalises_the_loudness() -> None:
    voice = prepare_voice(0.5 * sine(2.0)[None], sample_rate=RATE, name="Voice")
    assert voice.dtype == torch.float32
    # BS.1770: a full-scale sine of 997 Hz on one channel measures -3.01 LUFS
    assert float(voice.abs().max()) == pytest.approx(10 ** ((-23 + 3.01) / 20), rel=0.02)


def test_prepare_voice_may_raise_a_voice_above_full_scale() -> None:
    clicks = torch.zeros(2 * RATE)
    clicks[::4000] = 0.02
    voice = prepare_voice(clicks, sample_rate=RATE, name="Voice")
    assert float(voice.abs().max()) > 1.0


@pytest.mark.parametrize("shape", ["mono", "stereo", "batch"])
def test_prepare_voice_mixes_channels_down(shape: str) -> None:
    tone = sine(1.0)
    waveform = {"mono": tone, "stereo": torch.stack((tone, tone)), "batch": tone[None, None]}[shape]
    before = waveform.clone()
    voice = prepare_voice(waveform, sample_rate=RATE, name="Voice")
    assert torch.allclose(voice, prepare_voice(tone[None], sample_rate=RATE, name="Voice"))
    assert torch.equal(waveform, before)


def test_prepare_voice_takes_the_mean_of_channels() -> None:
    tone = sine(1.0)
    with_echo = torch.stack((tone, 0.5 * tone.roll(4)))
    voice = prepare_voice(with_echo, sample_rate=RATE, name="Voice")
    mean = prepare_voice(0.5 * tone + 0.25 * tone.roll(4), sample_rate=RATE, name="Voice")
    assert torch.allclose(voice, mean, atol=1e-6)


@pytest.mark.parametrize("rate", [8000, 22050, 44100, 48000])
def test_prepare_voice_resamples_to_16_khz(rate: int) -> None:
    voice = prepare_voice(sine(1.0, rate=rate, frequency=440.0), sample_rate=rate, name="Voice")
    direct = prepare_voice(sine(1.0, frequency=440.0), sample_rate=RATE, name="Voice")
    assert len(voice) == RATE
    inner = slice(800, -800)  # the filter rings at both ends
    error = (voice - direct)[inner].norm() / direct[inner].norm()
    assert float(error) < 5e-3


def test_prepare_voice_of_silence_passes() -> None:
    voice = prepare_voice(torch.zeros(1, RATE), sample_rate=RATE, name="Voice")
    assert torch.equal(voice, torch.zeros(RATE))
    whisper = 1e-6 * sine(1.0)
    assert torch.equal(prepare_voice(whisper, sample_rate=RATE, name="Voice"), whisper)


def test_prepare_voice_of_exactly_the_least_length_passes() -> None:
    assert len(prepare_voice(sine(0.4), sample_rate=RATE, name="Voice")) == 6400


NAN = sine(1.0)
NAN[7] = float("nan")


@pytest.mark.parametrize(
    ("waveform", "rate", "message"),
    [
        (sine(0.39), RATE, r"Bob's voice lasts 0\.39 s; at least 0\.4 s"),
        (sine(0.3, rate=48000), 48000, r"lasts 0\.30 s"),
        (torch.zeros(1, 0), RATE, "Bob's voice is empty"),
        (NAN, RATE, "Bob's voice holds NaN"),
        (NAN / 0 * 0, RATE, "NaN"),
        (torch.zeros(2, 1, RATE), RATE, r"\(2, 1, 16000\)"),
        (torch.zeros(1, RATE, dtype=torch.int16), RATE, "int16"),
        (sine(1.0), 0, "sample rate of 0 Hz"),
        (torch.stack((sine(1.0), -sine(1.0))), RATE, "2 channels that cancel each other"),
    ],
    ids=["short", "short_48k", "empty", "nan", "all_nan", "batch", "integers", "rate", "opposite"],
)
def test_prepare_voice_of_a_bad_recording_says_what_is_wrong(
    waveform: Tensor, rate: int, message: str
) -> None:
    with pytest.raises(InputError, match=message):
        prepare_voice(waveform, sample_rate=rate, name="Bob's voice")
    with pytest.raises(InputError, match=message):
        check_voice(waveform, sample_rate=rate, name="Bob's voice")


@pytest.mark.parametrize("rate", [8000, 11025, 22050, 44100, 48000])
def test_check_voice_draws_the_line_where_prepare_voice_does(rate: int) -> None:
    for num_samples in range(int(0.4 * rate) - 3, int(0.4 * rate) + 3):
        voice, refused = torch.ones(num_samples), []
        for check in (check_voice, prepare_voice):
            try:
                check(voice, sample_rate=rate, name="Voice")
            except InputError:
                refused.append(check)
        assert len(refused) != 1, num_samples


@pytest.mark.parametrize("num_channels", [2, 6])
def test_prepare_voice_hears_a_voice_on_one_channel_as_loud_as_on_all(num_channels: int) -> None:
    waveform = torch.zeros(num_channels, RATE)
    waveform[-1] = 0.3 * sine(1.0)
    voice = prepare_voice(waveform, sample_rate=RATE, name="Voice")
    alone = prepare_voice(0.3 * sine(1.0), sample_rate=RATE, name="Voice")
    assert torch.allclose(voice, alone, atol=1e-5)


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
        (1, "para", [0.0], "'para' is unknown"),
    ],
    ids=["no_voice", "starts", "negative", "nan", "mode"],
)
def test_arrange_of_bad_settings_says_what_is_wrong(
    num_voices: int, mode: Mode, starts: list[float], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        arrange([sine(0.5)] * num_voices, mode=mode, starts=starts)


def test_mix_of_one_recording_keeps_its_samples() -> None:
    recording = torch.stack((0.5 * sine(1.0, rate=44100), 0.25 * sine(1.0, rate=44100)))
    before = recording.clone()
    sound = mix([recording], sample_rates=[44100], starts=[0], num_frames=25)
    assert sound.sample_rate == 44100
    assert torch.equal(sound.waveform, recording[None])
    assert torch.equal(recording, before)


@pytest.mark.parametrize("frames", [24, 26])
def test_mix_lasts_as_long_as_the_picture(frames: int) -> None:
    sound = mix([sine(1.0, rate=48000)], sample_rates=[48000], starts=[0], num_frames=frames)
    assert sound.waveform.shape == (1, 1, frames * 1920)
    assert not bool(sound.waveform[..., 48000:].any())


def test_mix_takes_the_highest_rate_and_most_channels() -> None:
    low = 0.25 * sine(1.0, frequency=200.0)
    high = torch.zeros(2, 48000)
    high[1] = 0.5
    sound = mix(
        [low[None, None], high], sample_rates=[RATE, 48000], starts=[8000, 0], num_frames=38
    )
    assert sound.sample_rate == 48000
    assert sound.waveform.shape == (1, 2, 38 * 1920)
    left, right = sound.waveform[0]
    late = 0.25 * sine(1.0, rate=48000, frequency=200.0)
    assert torch.allclose(left[24500:71500], late[500:47500], atol=2e-3)
    assert not bool(left[:23000].abs().gt(1e-3).any())
    assert torch.allclose(right[:23000], torch.tensor(0.5), atol=1e-3)


def test_mix_of_many_channels_is_their_mean() -> None:
    surround = torch.stack([0.1 * i * torch.ones(RATE) for i in range(6)])
    alone = mix([surround], sample_rates=[RATE], starts=[0], num_frames=25)
    assert alone.waveform.shape == (1, 1, RATE)
    assert torch.allclose(alone.waveform, torch.tensor(0.25))
    stereo = torch.zeros(2, RATE)
    stereo[0] = 0.5
    both = mix([surround, stereo], sample_rates=[RATE, RATE], starts=[0, 0], num_frames=25)
    assert torch.allclose(both.waveform[0, :, 0], torch.tensor([0.75, 0.25]))


@pytest.mark.parametrize(("rate", "mixed"), [(192_000, 48_000), (37_800, 48_000), (8000, 8000)])
def test_mix_has_a_rate_that_video_files_take(rate: int, mixed: int) -> None:
    recording = sine(0.4, rate=rate, frequency=200.0)
    sound = mix([recording], sample_rates=[rate], starts=[0], num_frames=10)
    assert sound.sample_rate == mixed
    inner = slice(mixed // 10, -mixed // 10)
    direct = sine(0.4, rate=mixed, frequency=200.0)
    assert torch.allclose(sound.waveform[0, 0, inner], direct[inner], atol=2e-3)


def test_mix_too_loud_is_scaled_down_as_a_whole() -> None:
    tone = 0.8 * sine(1.0)
    sound = mix([tone, tone], sample_rates=[RATE, RATE], starts=[0, 0], num_frames=25)
    assert float(sound.waveform.abs().max()) == pytest.approx(1.0)
    assert torch.allclose(sound.waveform[0, 0], tone / tone.abs().max(), atol=1e-6)


def test_mix_cuts_what_starts_after_the_end() -> None:
    sound = mix([sine(0.5)], sample_rates=[RATE], starts=[RATE], num_frames=10)
    assert torch.equal(sound.waveform, torch.zeros(1, 1, 6400))


@pytest.mark.parametrize(("rates", "starts"), [([], [0]), ([RATE], []), ([RATE, RATE], [0])])
def test_mix_of_unequal_lists_is_refused(rates: list[int], starts: list[int]) -> None:
    with pytest.raises(InputError, match="a rate and a start for each"):
        mix([sine(0.5)], sample_rates=rates, starts=starts, num_frames=10)


def test_mix_of_a_bad_recording_names_the_speaker() -> None:
    with pytest.raises(InputError, match="Speaker 2's voice holds NaN"):
        mix([sine(0.5), NAN], sample_rates=[RATE, RATE], starts=[0, 0], num_frames=10)
