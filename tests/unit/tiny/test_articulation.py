"""The mouth's curves: shut in silence, in time with the sound, smooth, deaf to what is no voice."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from comfyui_multitalk.dev.train_tiny.articulation import articulation

RATE = 16000
SPEECH_RMS = 0.07  # of speech at -23 LUFS


def _tone(seconds: float, *, hertz: float, rms: float = SPEECH_RMS) -> NDArray[np.float64]:
    time = np.arange(round(seconds * RATE)) / RATE
    return np.sqrt(2) * rms * np.sin(2 * np.pi * hertz * time)


@pytest.mark.parametrize("num_samples", [0, 100, 2 * RATE])
def test_articulation_in_silence_is_exactly_zero(num_samples: int) -> None:
    curves = articulation(np.zeros(num_samples), 40)
    assert curves.shape == (40, 2)
    assert curves.dtype == np.float32
    assert (curves == 0).all()


def test_articulation_in_a_pause_between_sounds_is_exactly_zero() -> None:
    sound = _tone(1, hertz=700)
    curves = articulation(np.concatenate((sound, np.zeros(RATE), sound)), 75)
    assert curves[12, 0] > 0.9
    assert curves[62, 0] > 0.9
    assert np.abs(curves[32:43]).max() == 0


def test_articulation_of_room_noise_stays_shut() -> None:
    noise = 0.001 * np.random.default_rng(0).standard_normal(2 * RATE)
    assert articulation(noise, 50)[:, 0].max() < 0.001


@pytest.mark.parametrize("hertz", [1.5, 3.0])
def test_articulation_follows_a_modulated_tone_without_delay(hertz: float) -> None:
    middles = (np.arange(100) + 0.5) / 25
    time = np.arange(4 * RATE) / RATE
    swell = np.sin(np.pi * hertz * time) ** 2
    opening = articulation(swell * _tone(4, hertz=700), 100)[:, 0].astype(np.float64)
    expected = np.sin(np.pi * hertz * middles) ** 2
    correlations = {
        lag: np.corrcoef(np.roll(opening, -lag)[4:-4], expected[4:-4])[0, 1] for lag in range(-3, 4)
    }
    assert max(correlations, key=lambda lag: correlations[lag]) == 0
    assert correlations[0] > 0.85
    assert opening.max() > 0.85


def test_articulation_changes_no_faster_than_a_mouth() -> None:
    rng = np.random.default_rng(1)
    gates = np.repeat(
        rng.random(160) < 0.5, RATE // 20
    )  # sound that comes and goes 20 times a second
    opening = articulation(gates * _tone(8, hertz=700), 200)[:, 0]
    power = np.abs(np.fft.rfft(opening - opening.mean())) ** 2
    hertz = np.fft.rfftfreq(200, 1 / 25)
    assert power[hertz > 5].sum() < 0.05 * power.sum()


@pytest.mark.parametrize("hertz", [60.0, 5000.0])
def test_articulation_of_a_tone_outside_the_vowels_is_shut(hertz: float) -> None:
    middle = articulation(_tone(1, hertz=hertz), 25)[5:20, 0]
    assert middle.max() < 0.05


def test_articulation_is_spread_for_bright_and_rounded_for_dark_sounds() -> None:
    bright = articulation(_tone(1, hertz=2500), 25)[12, 1]
    dark = articulation(_tone(1, hertz=250), 25)[12, 1]
    assert bright > 0.8
    assert dark < -0.8


def test_articulation_is_the_same_whatever_follows() -> None:
    sound = np.concatenate((_tone(1, hertz=700), _tone(1, hertz=400)))
    whole, start = articulation(sound, 50), articulation(sound, 20)
    assert np.array_equal(whole[:20], start)
