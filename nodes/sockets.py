"""Our own socket types and the values that they carry."""

from __future__ import annotations

from dataclasses import dataclass

from comfy_api.latest import io
from torch import Tensor

from ..multitalk_core.geometry import Box
from ..multitalk_core.inputs.speech import Speech
from ..multitalk_core.inputs.timeline import Sound, Timeline
from ..multitalk_core.inputs.voices import Recording

Wav2Vec2 = io.Custom("MTK_WAV2VEC2")
Speakers = io.Custom("MULTITALK_SPEAKERS")
AudioEmbeds = io.Custom("MULTITALK_AUDIO")


@dataclass(frozen=True, kw_only=True, slots=True)
class Speaker:
    """One person of the video; `MULTITALK_SPEAKERS` is a tuple of them.

    Attributes:
        recording: The voice as it was recorded.
        region: Where the person is in the photo: a mask `(H, W)`, a box, or `None` for the default.
        start: Start time of the voice in seconds; with `in_turn` the pause before the voice.
    """

    recording: Recording
    region: Tensor | Box | None
    start: float


@dataclass(frozen=True, kw_only=True, slots=True)
class SpokenAudio:
    """The value of a `MULTITALK_AUDIO` socket.

    Attributes:
        speech: Audio features of every speaker.
        regions: Where each speaker is in the photo.
        timeline: Each speaker's track at 16 kHz, and when each voice begins and ends.
        sound: The mix of all recordings, as long as the video.
        encoder: Name of the Wav2Vec2 file that computed the features, for messages.
    """

    speech: Speech
    regions: tuple[Tensor | Box | None, ...]
    timeline: Timeline
    sound: Sound
    encoder: str
