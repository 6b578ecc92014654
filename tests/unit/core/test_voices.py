"""Recordings to voices; the voices are sines."""

from __future__ import annotations

import math
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor

from comfyui_multitalk.multitalk_core.errors import InputError
from comfyui_multitalk.multitalk_core.inputs.voices import (
    Recording,
    check_voice,
    prepare_voice,
)

RATE = 16000


def sine(seconds: float, *, rate: int = RATE, frequency: float = 997.0) -> Tensor:
    time = torch.arange(round(seconds * rate)) / rate
    return torch.sin(2 * math.pi * frequency * time)


def test_prepare_voice_normalises_the_loudness() -> None:
    voice = prepare_voice(Recording(0.5 * sine(2.0)[None], RATE, "Voice"))
    assert voice.dtype == torch.float32
    # BS.1770: a full-scale sine of 997 Hz on one channel measures -3.01 LUFS
    assert float(voice.abs().max()) == pytest.approx(10 ** ((-23 + 3.01) / 20), rel=0.02)


def test_prepare_voice_may_raise_a_voice_above_full_scale() -> None:
    clicks = torch.zeros(2 * RATE)
    clicks[::4000] = 0.02
    voice = prepare_voice(Recording(clicks, RATE, "Voice"))
    assert float(voice.abs().max()) > 1.0


@pytest.mark.parametrize("shape", ["mono", "stereo", "batch"])
def test_prepare_voice_mixes_channels_down(shape: str) -> None:
    tone = sine(1.0)
    waveform = {"mono": tone, "stereo": torch.stack((tone, tone)), "batch": tone[None, None]}[shape]
    before = waveform.clone()
    voice = prepare_voice(Recording(waveform, RATE, "Voice"))
    assert torch.allclose(voice, prepare_voice(Recording(tone[None], RATE, "Voice")))
    assert torch.equal(waveform, before)


def test_prepare_voice_takes_the_mean_of_channels() -> None:
    tone = sine(1.0)
    with_echo = torch.stack((tone, 0.5 * tone.roll(4)))
    voice = prepare_voice(Recording(with_echo, RATE, "Voice"))
    mean = prepare_voice(Recording(0.5 * tone + 0.25 * tone.roll(4), RATE, "Voice"))
    assert torch.allclose(voice, mean, atol=1e-6)


@pytest.mark.parametrize("rate", [8000, 22050, 44100, 48000])
def test_prepare_voice_resamples_to_16_khz(rate: int) -> None:
    voice = prepare_voice(Recording(sine(1.0, rate=rate, frequency=440.0), rate, "Voice"))
    direct = prepare_voice(Recording(sine(1.0, frequency=440.0), RATE, "Voice"))
    assert len(voice) == RATE
    inner = slice(800, -800)  # the filter rings at both ends
    error = (voice - direct)[inner].norm() / direct[inner].norm()
    assert float(error) < 5e-3


def test_prepare_voice_of_silence_passes() -> None:
    voice = prepare_voice(Recording(torch.zeros(1, RATE), RATE, "Voice"))
    assert torch.equal(voice, torch.zeros(RATE))
    whisper = 1e-6 * sine(1.0)
    assert torch.equal(prepare_voice(Recording(whisper, RATE, "Voice")), whisper)


def test_prepare_voice_of_exactly_the_least_length_passes() -> None:
    assert len(prepare_voice(Recording(sine(0.4), RATE, "Voice"))) == 6400


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
        prepare_voice(Recording(waveform, rate, "Bob's voice"))
    with pytest.raises(InputError, match=message):
        check_voice(Recording(waveform, rate, "Bob's voice"))


@pytest.mark.parametrize("rate", [8000, 11025, 22050, 44100, 48000])
def test_check_voice_draws_the_line_where_prepare_voice_does(rate: int) -> None:
    for num_samples in range(int(0.4 * rate) - 3, int(0.4 * rate) + 3):
        voice, refused = torch.ones(num_samples), []
        for check in (check_voice, prepare_voice):
            try:
                check(Recording(voice, rate, "Voice"))
            except InputError:
                refused.append(check)
        assert len(refused) != 1, num_samples


@pytest.mark.parametrize("num_channels", [2, 6])
def test_prepare_voice_hears_a_voice_on_one_channel_as_loud_as_on_all(num_channels: int) -> None:
    waveform = torch.zeros(num_channels, RATE)
    waveform[-1] = 0.3 * sine(1.0)
    voice = prepare_voice(Recording(waveform, RATE, "Voice"))
    alone = prepare_voice(Recording(0.3 * sine(1.0), RATE, "Voice"))
    assert torch.allclose(voice, alone, atol=1e-5)


_WITHOUT = """
import sys
sys.modules["{package}"] = None  # as if it were not installed
import torch
import comfyui_multitalk.multitalk_core.engine
from comfyui_multitalk.multitalk_core.errors import MultiTalkError
from comfyui_multitalk.multitalk_core.inputs.timeline import arrange_recordings
from comfyui_multitalk.multitalk_core.inputs.voices import Recording
try:
    arrange_recordings([Recording(torch.ones(48000), 48000, "Voice")], mode="together", starts=[0])
except MultiTalkError as reason:
    print(reason)
"""


@pytest.mark.parametrize("package", ["librosa", "pyloudnorm"])
def test_missing_package_is_named_on_first_use(
    package: str, tmp_path: Path, repository: Path
) -> None:
    (tmp_path / "comfyui_multitalk").symlink_to(repository)
    done = subprocess.run(
        [sys.executable, "-c", _WITHOUT.format(package=package)],
        env={**os.environ, "PYTHONPATH": str(tmp_path), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert f"The Python package {package} is missing" in done.stdout
    assert f"-m pip install {package}` and restart." in done.stdout
