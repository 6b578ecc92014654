"""Timeline: when each speaker speaks, and the sound of the video.

Follows `audio_prepare_multi` in MultiTalk `generate_multitalk.py`: the voices start `together`
(upstream's `para`) or follow each other `in_turn` (`add`).

Departure: voices of unequal length are padded with silence (upstream stops with an error).
"""

from __future__ import annotations

from collections.abc import Sequence
from math import inf
from typing import Any, Literal, NamedTuple

import torch
from numpy.typing import NDArray
from torch import Tensor

from ..config import FPS
from ..errors import InputError
from .voices import (
    SAMPLE_RATE,
    Recording,
    channels_of,
    check_voice,
    prepare_voice,
    resample,
    voice_length,
)

Mode = Literal["together", "in_turn"]

MAX_START = 3600.0
"""Latest start of a voice, in seconds."""
_ENCODER_BYTES = 20_000_000
"""Memory that Wav2Vec2 needs per second of sound: its first convolution has 512 channels of
float32 at 3200 Hz, of which three copies exist at once."""
_SAMPLES_PER_FRAME = SAMPLE_RATE // FPS
_AAC_RATES = frozenset(
    (96_000, 88_200, 64_000, 48_000, 44_100, 32_000, 24_000, 22_050, 16_000, 12_000, 11_025, 8_000)
)
"""Sample rates that every MP4 may have, in Hz."""
_OTHER_RATE = 48_000
"""Sample rate of the mix if AAC does not know that of the recordings, in Hz."""


class Timeline(NamedTuple):
    """Who speaks when: one track per speaker, all of the same length.

    Attributes:
        tracks: One track `(N,)` per speaker at 16 kHz, silent where the speaker is.
        num_frames: Video frames that last as long as the tracks, rounded up.
        starts: First sample of each voice on its track, at 16 kHz.
        stops: One past the last sample of each voice.
    """

    tracks: tuple[Tensor, ...]
    num_frames: int
    starts: tuple[int, ...]
    stops: tuple[int, ...]


class Sound(NamedTuple):
    """The sound of a video.

    Attributes:
        waveform: `(1, C, N)` float32 in [-1, 1].
        sample_rate: In Hz.
    """

    waveform: Tensor
    sample_rate: int


class Arrangement(NamedTuple):
    """What the model hears (the timeline) and what the viewer hears (the sound)."""

    timeline: Timeline
    sound: Sound


def arrange_recordings(
    recordings: Sequence[Recording], *, mode: Mode, starts: Sequence[float], memory: float = inf
) -> Arrangement:
    """Prepare the recordings, one per speaker, place them on a timeline and mix them.

    `mode` and `starts` are as in `arrange`; `memory` is that of the device that runs Wav2Vec2, in
    bytes.

    Raises:
        InputError: If there is no recording, a recording or a start cannot be used, or the timeline
            is longer than the memory allows.
    """
    for recording in recordings:
        check_voice(recording)
    lengths = [voice_length(recording) for recording in recordings]
    require_memory(_lay_out(lengths, mode, starts).length / SAMPLE_RATE, memory=memory)
    timeline = arrange([prepare_voice(one) for one in recordings], mode=mode, starts=starts)
    sound = mix(recordings, starts=timeline.starts, num_frames=timeline.num_frames)
    return Arrangement(timeline, sound)


def arrange(voices: Sequence[Tensor], *, mode: Mode, starts: Sequence[float]) -> Timeline:
    """Lay voices on one timeline.

    Args:
        voices: One voice `(N_s,)` per speaker at 16 kHz.
        mode: `together`: each voice begins at its start. `in_turn`: each begins when the one before
            has ended; its start is the pause between them.
        starts: One start per voice, in seconds.

    Returns:
        Tracks as long as the last voice needs, silent elsewhere.

    Raises:
        InputError: If there is no voice, or a start is not between 0 and `MAX_START`.
    """
    offsets, end = _lay_out([len(voice) for voice in voices], mode, starts)
    placed = list(zip(voices, offsets, strict=True))
    return Timeline(
        tracks=tuple(_place(voice, offset=offset, length=end) for voice, offset in placed),
        num_frames=-(-end // _SAMPLES_PER_FRAME),
        starts=tuple(offsets),
        stops=tuple(offset + len(voice) for voice, offset in placed),
    )


def mix(recordings: Sequence[Recording], *, starts: Sequence[int], num_frames: int) -> Sound:
    """Mix the original recordings into the video's sound.

    Args:
        recordings: At least one.
        starts: First sample of each on the timeline, at 16 kHz (`Timeline.starts`).
        num_frames: Video frames; the sound lasts exactly as long.

    Returns:
        The mix in a form that video files take: at the highest of the rates, or 48 kHz if AAC does
        not support that one; stereo if a recording is stereo, else mono (a recording with more
        channels is averaged to mono); scaled down only if it would clip.

    Raises:
        InputError: If a recording cannot be used.
    """
    sounds = [_at_most_stereo(channels_of(one)) for one in recordings]
    highest = max(one.sample_rate for one in recordings)
    sample_rate = highest if highest in _AAC_RATES else _OTHER_RATE
    num_channels = max(len(sound) for sound in sounds)
    total = torch.zeros(num_channels, round(num_frames * sample_rate / FPS))
    for sound, recording, start in zip(sounds, recordings, starts, strict=True):
        resampled = torch.from_numpy(resample(sound, recording.sample_rate, sample_rate))
        offset = round(start * sample_rate / SAMPLE_RATE)
        total += _place(resampled, offset=offset, length=total.shape[-1])
    peak = float(total.abs().max()) if total.numel() else 0.0
    return Sound((total / max(peak, 1.0))[None], sample_rate)


def require_memory(seconds: float, *, memory: float) -> None:
    """Refuse sound that is too long for the memory.

    Raises:
        InputError: If Wav2Vec2 needs more than `memory` bytes for so many seconds.
    """
    needed = seconds * _ENCODER_BYTES
    if needed > memory:
        raise InputError(
            f"The sound lasts {seconds:.0f} s, for which Wav2Vec2 needs {needed / 1e9:.1f} GB of "
            f"memory; there are {memory / 1e9:.1f} GB, enough for {memory / _ENCODER_BYTES:.0f} s. "
            "Give shorter recordings or earlier starts."
        )


class _Layout(NamedTuple):
    offsets: list[int]
    """First sample of each voice."""
    length: int
    """Samples of the whole timeline."""


def _lay_out(lengths: Sequence[int], mode: Mode, starts: Sequence[float]) -> _Layout:
    if not lengths:
        raise InputError("There is no speaker. Connect at least one speaker with a voice.")
    if len(starts) != len(lengths):
        raise InputError(
            f"There are {len(lengths)} voices but {len(starts)} starts; give one start per voice."
        )
    if mode not in ("together", "in_turn"):
        raise InputError(f"Mode {mode!r} is unknown. Choose 'together' or 'in_turn'.")
    offsets: list[int] = []
    end = 0
    for number, (length, start) in enumerate(zip(lengths, starts, strict=True), start=1):
        if not 0 <= start <= MAX_START:
            raise InputError(
                f"Speaker {number} starts at {start} s. Give a start between 0 and "
                f"{MAX_START:.0f} s."
            )
        offsets.append(round(start * SAMPLE_RATE) + (end if mode == "in_turn" else 0))
        end = max(end, offsets[-1] + length)
    return _Layout(offsets, end)


def _at_most_stereo(channels: NDArray[Any]) -> NDArray[Any]:
    return channels if len(channels) <= 2 else channels.mean(axis=0, keepdims=True)


def _place(sound: Tensor, *, offset: int, length: int) -> Tensor:
    """Return `length` samples of silence with the sound from `offset` on, cut at the end."""
    placed = sound.new_zeros(*sound.shape[:-1], length)
    kept = sound[..., : max(length - offset, 0)]
    placed[..., offset : offset + kept.shape[-1]] = kept
    return placed
