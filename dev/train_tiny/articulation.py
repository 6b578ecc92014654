"""How far the mouth opens for a sound, and whether it is rounded or spread.

Faces are drawn by this function, and videos are measured against it. It is not phonetics: the
opening follows the loudness of the frequency band of vowels, the width the brightness of that band.
Both are smoothed to what a mouth can do and to the four video frames of a latent frame. Plain
NumPy; the same sound gives the same mouth.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

SAMPLE_RATE = 16000
"""Samples per second of the sound."""
FPS = 25
"""Rows per second of the curves."""
BAND = (200.0, 3500.0)
"""The band of the vowels, in Hz; hum below and hiss above do not move the mouth."""

_HOP = 160  # samples between two readings of the spectrum: 10 ms
_WINDOW = 512  # samples of one reading: 32 ms
_HOPS_PER_FRAME = SAMPLE_RATE // FPS // _HOP
_SMOOTHING = 0.055  # seconds, deviation of a bell: half the power at 2.4 Hz, a tenth at 4.4 Hz
_FLOOR = 1e-4  # power of the band that begins to open the mouth: -40 dB, for speech at -23 LUFS
_FULL = 0.02  # power that opens it fully: -17 dB
_REACH = round(4 * _SMOOTHING * SAMPLE_RATE / _HOP)  # readings on each side of the bell's middle
_GAIN = 1.25  # gives back what smoothing takes from the peaks
_NEUTRAL = -0.95  # brightness of a neutral mouth, in octaves above 1 kHz
_SPREAD = 0.6  # octaves from the neutral mouth to a clearly rounded or spread one
_WIDTH_FLOOR = 0.1  # level below which the width goes back to neutral
_BLOCK = 4096  # readings at a time, so that a long sound needs little memory


def articulation(waveform: NDArray[np.floating], num_frames: int) -> NDArray[np.float32]:
    """Give the mouth's opening and width for every video frame.

    Args:
        waveform: Sound `(N,)` at 16 kHz and -23 LUFS, as from `multitalk_core.inputs.voices`.
        num_frames: Rows of the result; before and after the sound there is silence.

    Returns:
        `(num_frames, 2)`: opening in [0, 1], 0 in silence; width in [-1, 1] from rounded to spread,
        0 in silence. Row `i` belongs to the middle of frame `i`.
    """
    power, brightness = _readings(waveform, num_frames * _HOPS_PER_FRAME + _REACH)
    level = np.log1p(power / _FLOOR) / np.log1p(_FULL / _FLOOR)
    loudness = _smooth(level)
    opening = np.minimum(_GAIN * loudness, 1.0)
    opening = opening * opening * (3.0 - 2.0 * opening)  # more contrast, no corner at full opening
    leaning = _smooth(level * (brightness - _NEUTRAL)) / (loudness + _WIDTH_FLOOR)
    curves = np.stack((opening, np.tanh(leaning / _SPREAD)), axis=1)
    middle = _HOPS_PER_FRAME // 2
    return curves[middle::_HOPS_PER_FRAME][:num_frames].astype(np.float32)


def _readings(
    waveform: NDArray[np.floating], count: int
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Give the band's power and its brightness in octaves above 1 kHz, `(count,)`, every 10 ms."""
    before, length = _WINDOW // 2, (count - 1) * _HOP + _WINDOW
    sound = np.zeros(max(length, 0))
    kept = np.asarray(waveform, dtype=np.float64)[: max(length - before, 0)]
    sound[before : before + len(kept)] = kept
    hertz = np.fft.rfftfreq(_WINDOW, 1 / SAMPLE_RATE)
    band = (hertz >= BAND[0]) & (hertz <= BAND[1])
    octaves = np.log2(hertz[band] / 1000.0)
    window = np.hanning(_WINDOW)
    scale = 2.0 / (_WINDOW * float((window**2).sum()))  # of a sound's mean square
    power, brightness = np.zeros(count), np.zeros(count)
    for start in range(0, count, _BLOCK):
        hops = np.arange(start, min(start + _BLOCK, count))
        pieces = sound[hops[:, None] * _HOP + np.arange(_WINDOW)] * window
        spectrum = scale * np.abs(np.fft.rfft(pieces)[:, band]) ** 2
        power[hops] = spectrum.sum(axis=1)
        brightness[hops] = spectrum @ octaves / np.maximum(power[hops], 1e-12)
    return power, brightness


def _smooth(curve: NDArray[np.float64]) -> NDArray[np.float64]:
    """Smooth a curve of one value every 10 ms with a bell; beyond its ends there is silence."""
    deviation = _SMOOTHING * SAMPLE_RATE / _HOP
    bell = np.exp(-0.5 * (np.arange(-_REACH, _REACH + 1) / deviation) ** 2)
    padded = np.pad(curve, _REACH)
    return np.convolve(padded, bell / bell.sum(), mode="valid")
