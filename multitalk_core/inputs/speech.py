"""Speech: what each speaker says, as audio features at the video's frame rate.

Third step of a video: `listen` runs the voice encoder over every speaker's track. Follows
`get_embedding` in MultiTalk `generate_multitalk.py`.

Letters: S speakers, T video frames, L layers of Wav2Vec2, C their width.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from ..errors import InputError
from ..method.segments import Segment
from ..model.audio_tokens import window_features


class VoiceEncoder(Protocol):
    """A Wav2Vec2 on its device."""

    def features(self, track: Tensor) -> Tensor:
        """Turn a track `(N,)` at 16 kHz into its layers at 25 Hz, `(T, L, C)`, on the CPU.

        The features go on for `segments.TAIL_FRAMES` of silence after the track.
        """


@dataclass(frozen=True, kw_only=True, slots=True)
class Speech:
    """What is said in the video.

    Attributes:
        features: Wav2Vec2 layers at 25 Hz for each speaker, `(T, L, C)`; T should reach
            `segments.TAIL_FRAMES` of silence beyond the video, else the last frame is repeated.
        num_frames: Frames of the video.
    """

    features: tuple[Tensor, ...]
    num_frames: int

    def __post_init__(self) -> None:
        if not self.features:
            raise InputError("There is no speaker. Give at least one voice.")
        if len({tuple(one.shape[1:]) for one in self.features}) > 1:
            shapes = ", ".join(str(tuple(one.shape)) for one in self.features)
            raise InputError(
                f"The speakers' audio features have different sizes ({shapes}). "
                "Take all of them with the same Wav2Vec2 model."
            )
        for number, one in enumerate(self.features, start=1):
            if not bool(one.isfinite().all()):
                raise InputError(
                    f"The audio features of speaker {number} hold NaN or infinite numbers. "
                    "Give another recording, or run Wav2Vec2 in float32."
                )

    @property
    def num_speakers(self) -> int:
        """Number of speakers."""
        return len(self.features)

    def windows(self, segment: Segment) -> Tensor:
        """Give the features around each frame of a segment, `(S, T, 5, L, C)`."""
        return torch.stack(
            [window_features(f, start=segment.start, stop=segment.stop) for f in self.features]
        )


def listen(tracks: Sequence[Tensor], encoder: VoiceEncoder, *, num_frames: int) -> Speech:
    """Encode the tracks of all speakers, `(N,)` each at 16 kHz; the video has `num_frames`."""
    return Speech(
        features=tuple(encoder.features(track) for track in tracks), num_frames=num_frames
    )
