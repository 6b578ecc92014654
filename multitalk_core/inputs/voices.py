"""Voices: from recordings to one 16 kHz track per speaker, and to the sound of the video.

Follows the audio part of MultiTalk `generate_multitalk.py` (`audio_prepare_single`,
`audio_prepare_multi`, `loudness_norm`): mono, 16 kHz (librosa, soxr), -23 LUFS (pyloudnorm, ITU-R
BS.1770-4) per voice, then the voices `together` (upstream's `para`) or `in_turn` (`add`).

Departure: voices of unequal length are padded with silence (upstream stops with an error).
"""

from __future__ import annotations

from collections.abc import Sequence
from math import isfinite
from typing import Any, Literal, NamedTuple

import librosa
import numpy as np
import pyloudnorm
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..config import FPS
from ..errors import InputError

SAMPLE_RATE = 16000
"""Samples per second of everything the model hears."""
LOUDNESS = -23.0
"""Loudness every voice is brought to, in LUFS."""
MIN_SECONDS = 0.4
"""Shortest voice: one block of the loudness measurement."""

Mode = Literal["together", "in_turn"]

_SAMPLES_PER_FRAME = SAMPLE_RATE // FPS
_AAC_RATES = frozenset(
    (96_000, 88_200, 64_000, 48_000, 44_100, 32_000, 24_000, 22_050, 16_000, 12_000, 11_025, 8_000)
)
"""Sample rates that every MP4 may have, in Hz."""
_RATE_OF_OTHERS = 48_000
_CANCELLED = 0.03
"""Share of the channels' level under which their mean is no longer the sound (-30 dB)."""


class Timeline(NamedTuple):
    """Who speaks when: one track per speaker, all of one length."""

    tracks: tuple[Tensor, ...]
    """One track `(N,)` per speaker at 16 kHz, silent where the speaker is."""
    num_frames: int
    """Video frames that last as long as the tracks, rounded up."""
    starts: tuple[int, ...]
    """First sample of each voice on its track, at 16 kHz."""
    stops: tuple[int, ...]
    """One past the last sample of each."""


class Sound(NamedTuple):
    """A sound with its rate, as a video carries it."""

    waveform: Tensor
    """`(1, C, N)` float32 in [-1, 1]."""
    sample_rate: int
    """Samples per second."""


def prepare_voice(waveform: Tensor, *, sample_rate: int, name: str) -> Tensor:
    """Turn a recording into what the model hears: mono, 16 kHz, -23 LUFS.

    Silence, and what is too quiet to be measured (below -70 LUFS), keeps its level.

    Args:
        waveform: `(N,)`, `(C, N)` or `(1, C, N)` in [-1, 1].
        sample_rate: Samples per second of `waveform`.
        name: What to call the recording in a message, such as "Speaker 1's voice".

    Returns:
        The voice, `(N,)` float32 at 16 kHz on the CPU.

    Raises:
        InputError: If the recording is shorter than 0.4 s, holds NaN, is no waveform, or has
            channels that cancel each other.
    """
    mono = _mono(waveform, sample_rate=sample_rate, name=name)
    voice = _resample(mono, source_rate=sample_rate, sample_rate=SAMPLE_RATE)
    return torch.from_numpy(normalize_loudness(voice, name=name).astype(np.float32))


def check_voice(waveform: Tensor, *, sample_rate: int, name: str) -> None:
    """Refuse at once what `prepare_voice` would refuse.

    Raises:
        InputError: As `prepare_voice` does.
    """
    mono = _mono(waveform, sample_rate=sample_rate, name=name)
    _require_length(-(-len(mono) * SAMPLE_RATE // sample_rate), name=name)


def normalize_loudness(voice: NDArray[Any], *, name: str) -> NDArray[Any]:
    """Bring a mono voice `(N,)` at 16 kHz to -23 LUFS; silence comes back as it is.

    Raises:
        InputError: If the voice is shorter than 0.4 s; the message calls it `name`.
    """
    _require_length(len(voice), name=name)
    with np.errstate(divide="ignore"):  # silence has a loudness of minus infinity
        loudness = pyloudnorm.Meter(SAMPLE_RATE).integrated_loudness(voice)
    if not isfinite(loudness) or abs(loudness) > 100:
        return voice
    # pyloudnorm's own normalisation warns of peaks above 1; nothing here clips
    return np.float64(10 ** ((LOUDNESS - loudness) / 20)) * voice


def arrange(voices: Sequence[Tensor], *, mode: Mode, starts: Sequence[float]) -> Timeline:
    """Lay voices on one timeline.

    Args:
        voices: One voice `(N_s,)` per speaker at 16 kHz.
        mode: `together`: every voice begins at its start; `in_turn`: when the one before has ended,
            and its start is the pause before it.
        starts: One start per voice, in seconds.

    Returns:
        Tracks as long as the last voice needs, silent elsewhere.

    Raises:
        InputError: If there is no voice, or a start is negative or not a number.
    """
    if not voices:
        raise InputError("There is no speaker. Connect at least one speaker with a voice.")
    if len(starts) != len(voices):
        raise InputError(
            f"There are {len(voices)} voices but {len(starts)} starts; give one start per voice."
        )
    if mode not in ("together", "in_turn"):
        raise InputError(f"Mode {mode!r} is unknown. Choose 'together' or 'in_turn'.")
    offsets: list[int] = []
    end = 0
    for i_voice, (voice, start) in enumerate(zip(voices, starts, strict=True)):
        if not isfinite(start) or start < 0:
            raise InputError(f"Speaker {i_voice + 1} starts at {start} s. Give 0 or more seconds.")
        offsets.append(round(start * SAMPLE_RATE) + (end if mode == "in_turn" else 0))
        end = max(end, offsets[-1] + len(voice))
    return Timeline(
        tuple(
            _place(voice, offset=offset, length=end)
            for voice, offset in zip(voices, offsets, strict=True)
        ),
        -(-end // _SAMPLES_PER_FRAME),
        tuple(offsets),
        tuple(offset + len(voice) for offset, voice in zip(offsets, voices, strict=True)),
    )


def mix(
    waveforms: Sequence[Tensor],
    *,
    sample_rates: Sequence[int],
    starts: Sequence[int],
    num_frames: int,
) -> Sound:
    """Mix the original recordings into the video's sound.

    Args:
        waveforms: The recordings as they came, each `(N,)`, `(C, N)` or `(1, C, N)` in [-1, 1].
        sample_rates: Samples per second of each.
        starts: First sample of each on the timeline, at 16 kHz (`Timeline.starts`).
        num_frames: Video frames; the sound lasts exactly as long.

    Returns:
        The mix as video files take it: at the highest of the rates, or 48 kHz where AAC does not
        know that one; stereo if a recording is (of more channels the mean is taken), else mono;
        made quieter only if it would clip.

    Raises:
        InputError: If a recording cannot be used, or rates or starts do not match the recordings.
    """
    if not waveforms or not len(waveforms) == len(sample_rates) == len(starts):
        raise InputError(
            f"There are {len(waveforms)} recordings, {len(sample_rates)} sample rates and "
            f"{len(starts)} starts; give at least one recording, and a rate and a start for each."
        )
    recordings = [
        _at_most_stereo(_channels(waveform, sample_rate=rate, name=f"Speaker {i + 1}'s voice"))
        for i, (waveform, rate) in enumerate(zip(waveforms, sample_rates, strict=True))
    ]
    sample_rate = max(sample_rates) if max(sample_rates) in _AAC_RATES else _RATE_OF_OTHERS
    num_channels = max(len(recording) for recording in recordings)
    total = torch.zeros(num_channels, round(num_frames * sample_rate / FPS))
    for recording, rate, start in zip(recordings, sample_rates, starts, strict=True):
        sound = torch.from_numpy(_resample(recording, source_rate=rate, sample_rate=sample_rate))
        total += _place(
            sound, offset=round(start * sample_rate / SAMPLE_RATE), length=total.shape[-1]
        )
    peak = float(total.abs().max()) if total.numel() else 0.0
    return Sound((total / max(peak, 1.0))[None], sample_rate)


def _channels(waveform: Tensor, *, sample_rate: int, name: str) -> NDArray[Any]:
    """Give the recording as `(C, N)` float32, checked."""
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


def _mono(waveform: Tensor, *, sample_rate: int, name: str) -> NDArray[Any]:
    """Give the mean of the recording's channels, `(N,)`, checked."""
    channels = _channels(waveform, sample_rate=sample_rate, name=name)
    mono: NDArray[Any] = channels.mean(axis=0)
    if np.linalg.norm(mono) * len(channels) ** 0.5 < _CANCELLED * np.linalg.norm(channels):
        raise InputError(
            f"{name} has {len(channels)} channels that cancel each other out (they are opposite). "
            "Give one of them alone."
        )
    return mono


def _at_most_stereo(channels: NDArray[Any]) -> NDArray[Any]:
    return channels if len(channels) <= 2 else channels.mean(axis=0, keepdims=True)


def _require_length(num_samples: int, *, name: str) -> None:
    if num_samples < MIN_SECONDS * SAMPLE_RATE:
        raise InputError(
            f"{name} lasts {num_samples / SAMPLE_RATE:.2f} s; at least {MIN_SECONDS} s is needed "
            "to measure its loudness. Give a longer recording, or add silence to it."
        )


def _resample(sound: NDArray[Any], *, source_rate: int, sample_rate: int) -> NDArray[Any]:
    if source_rate == sample_rate:
        return sound
    resampled: NDArray[Any] = librosa.resample(sound, orig_sr=source_rate, target_sr=sample_rate)
    return resampled


def _place(sound: Tensor, *, offset: int, length: int) -> Tensor:
    """Give `length` samples of silence with the sound from `offset` on, cut at the end."""
    placed = sound.new_zeros(*sound.shape[:-1], length)
    kept = sound[..., : max(length - offset, 0)]
    placed[..., offset : offset + kept.shape[-1]] = kept
    return placed
