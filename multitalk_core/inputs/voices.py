"""Voices: from a recording to the 16 kHz track the model hears.

Follows the audio part of MultiTalk `generate_multitalk.py` (`audio_prepare_single`,
`loudness_norm`): mono, 16 kHz (librosa, soxr), -23 LUFS (pyloudnorm, ITU-R BS.1770-4) per voice.
librosa and pyloudnorm are imported on first use, so that ComfyUI's nodes load without them.
"""

from __future__ import annotations

import sys
from math import isfinite
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..errors import InputError, MultiTalkError

SAMPLE_RATE = 16000
"""Sample rate of the Wav2Vec2 encoder, in Hz."""
LOUDNESS = -23.0
"""Loudness of every voice the encoder hears, in LUFS."""
MIN_SECONDS = 0.4
"""Shortest voice: one block of the loudness measurement."""

_CANCELLED = 0.03
"""Share of the channels' level below which their mean is considered silent (-30 dB)."""


class Recording(NamedTuple):
    """One speaker's recording as it was made.

    Attributes:
        waveform: `(N,)`, `(C, N)` or `(1, C, N)` in [-1, 1].
        sample_rate: In Hz.
        name: What to call the recording in a message, such as "Speaker 1's voice".
    """

    waveform: Tensor
    sample_rate: int
    name: str


def prepare_voice(recording: Recording) -> Tensor:
    """Convert a recording to mono, 16 kHz and -23 LUFS.

    Silence and sound too quiet to be measured (below -70 LUFS) keep their level.

    Returns:
        The voice, `(N,)` float32 at 16 kHz on the CPU.

    Raises:
        InputError: If the recording is shorter than 0.4 s, holds NaN, is no waveform, or has
            channels that cancel each other.
    """
    voice = resample(_mono(recording), recording.sample_rate, SAMPLE_RATE)
    return torch.from_numpy(normalize_loudness(voice, name=recording.name).astype(np.float32))


def check_voice(recording: Recording) -> None:
    """Raise the `InputError` that `prepare_voice` would raise, but prepare nothing."""
    _mono(recording)
    _require_length(voice_length(recording), name=recording.name)


def voice_length(recording: Recording) -> int:
    """Return how many samples the prepared voice has, at 16 kHz."""
    return -(-recording.waveform.shape[-1] * SAMPLE_RATE // recording.sample_rate)


def normalize_loudness(voice: NDArray[Any], *, name: str) -> NDArray[Any]:
    """Bring a mono voice `(N,)` at 16 kHz to -23 LUFS; silence keeps its level.

    Raises:
        InputError: If the voice is shorter than 0.4 s; the message calls it `name`.
    """
    _require_length(len(voice), name=name)
    try:
        import pyloudnorm
    except ImportError as reason:
        raise _missing("pyloudnorm") from reason
    with np.errstate(divide="ignore"):  # silence has a loudness of minus infinity
        loudness = pyloudnorm.Meter(SAMPLE_RATE).integrated_loudness(voice)
    if not isfinite(loudness) or abs(loudness) > 100:
        return voice
    # pyloudnorm's own normalisation warns of peaks above 1; nothing here clips
    return np.float64(10 ** ((LOUDNESS - loudness) / 20)) * voice


def resample(sound: NDArray[Any], source_rate: int, sample_rate: int) -> NDArray[Any]:
    """Resample the last axis from one rate to another, both in Hz.

    Raises:
        MultiTalkError: If librosa is not installed.
    """
    if source_rate == sample_rate:
        return sound
    try:
        import librosa
    except ImportError as reason:
        raise _missing("librosa") from reason
    resampled: NDArray[Any] = librosa.resample(sound, orig_sr=source_rate, target_sr=sample_rate)
    return resampled


def channels_of(recording: Recording) -> NDArray[Any]:
    """Return the checked channels of a recording, `(C, N)` float32.

    Raises:
        InputError: If the recording is no waveform, is empty, or holds NaN or infinite samples.
    """
    waveform, sample_rate, name = recording
    channels = waveform[0] if waveform.ndim == 3 and waveform.shape[0] == 1 else waveform
    if channels.ndim == 1:
        channels = channels[None]
    if channels.ndim != 2 or not channels.is_floating_point():
        raise InputError(
            f"{name} is {waveform.dtype} of shape {tuple(waveform.shape)}; one recording "
            "(channels, samples) of floats in [-1, 1] is needed. Connect one recording per speaker."
        )
    if sample_rate <= 0:
        raise InputError(
            f"{name} has a sample rate of {sample_rate} Hz. Give the rate it was recorded at."
        )
    if channels.numel() == 0:
        raise InputError(f"{name} is empty. Give a recording of at least {MIN_SECONDS} s.")
    if not bool(torch.isfinite(channels).all()):
        raise InputError(
            f"{name} holds NaN or infinite samples. Check the step that made the sound."
        )
    return channels.detach().float().cpu().numpy()


def _mono(recording: Recording) -> NDArray[Any]:
    """Return the mean of the recording's channels, `(N,)`, checked."""
    channels = channels_of(recording)
    mono: NDArray[Any] = channels.mean(axis=0)
    if np.linalg.norm(mono) * len(channels) ** 0.5 < _CANCELLED * np.linalg.norm(channels):
        raise InputError(
            f"{recording.name} has {len(channels)} channels that cancel each other out (they are "
            "opposite). Give one of them alone."
        )
    return mono


def _require_length(num_samples: int, *, name: str) -> None:
    if num_samples < MIN_SECONDS * SAMPLE_RATE:
        raise InputError(
            f"{name} lasts {num_samples / SAMPLE_RATE:.2f} s; at least {MIN_SECONDS} s is needed "
            "to measure its loudness. Give a longer recording, or add silence to it."
        )


def _missing(package: str) -> MultiTalkError:
    return MultiTalkError(
        f"The Python package {package} is missing; voices cannot be prepared without it. Run "
        f"`{sys.executable} -m pip install {package}` and restart."
    )
