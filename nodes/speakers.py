"""MultiTalk Speaker: combines a voice with the place of its speaker in the photo."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from comfy_api.latest import io
from torch import Tensor

from ..multitalk_core.errors import InputError
from ..multitalk_core.geometry import Box
from ..multitalk_core.inputs.timeline import MAX_START
from ..multitalk_core.inputs.voices import Recording, check_voice
from .sockets import Speaker, Speakers

_MAX_PIXELS = 16384


def _side(name: str, what: str) -> io.Int.Input:
    return io.Int.Input(
        name,
        default=0,
        min=0,
        max=_MAX_PIXELS,
        tooltip=(
            f"{what} edge of a box around the person, in pixels of the photo. If all four edges "
            "are 0, there is no box."
        ),
    )


class MultiTalkSpeaker(io.ComfyNode):
    """MultiTalk Speaker."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="MTK_Speaker",
            display_name="MultiTalk Speaker",
            category="MultiTalk",
            description=(
                "Combines a voice with the place of its speaker in the photo. A single speaker "
                "needs no mask and no box. For two speakers without masks or boxes, the first is "
                "the left half of the photo and the second the right half."
            ),
            search_aliases=["multitalk", "voice", "person"],
            inputs=[
                io.Audio.Input(
                    "audio", tooltip="The voice: at least 0.4 seconds, any sample rate."
                ),
                io.Mask.Input(
                    "mask",
                    optional=True,
                    tooltip="Mask of the photo's size. It is white where the person is.",
                ),
                _side("left", "Left"),
                _side("top", "Top"),
                _side("right", "Right"),
                _side("bottom", "Bottom"),
                io.Float.Input(
                    "start",
                    default=0.0,
                    min=0.0,
                    max=MAX_START,
                    step=0.04,
                    tooltip=(
                        "Time at which the voice begins, in seconds. In the mode in_turn of "
                        "MultiTalk Audio Embeds: the pause before the voice, in seconds."
                    ),
                ),
            ],
            outputs=[
                Speakers.Output(
                    display_name="speaker", tooltip="The speaker, for MultiTalk Audio Embeds."
                )
            ],
        )

    @classmethod
    def execute(
        cls,
        audio: Mapping[str, Any] | None,
        left: int,
        top: int,
        right: int,
        bottom: int,
        start: float,
        mask: Tensor | None = None,
    ) -> io.NodeOutput:
        box = Box(left, top, right, bottom)
        if mask is not None and any(box):
            raise InputError(
                "This speaker has a mask and a box; only one of them is possible. Disconnect the "
                "mask, or set all four edges of the box to 0."
            )
        if audio is None:  # as ComfyUI's video nodes give it for a video without sound
            raise InputError(
                "The voice is missing: the node connected to `audio` gives no sound. Connect Load "
                "Audio, or a video with sound."
            )
        recording = Recording(audio["waveform"], int(audio["sample_rate"]), "The voice")
        check_voice(recording)
        region = (box if any(box) else None) if mask is None else _one_mask(mask)
        return io.NodeOutput((Speaker(recording=recording, region=region, start=start),))


def _one_mask(mask: Tensor) -> Tensor:
    if mask.ndim == 3 and mask.shape[0] != 1:
        raise InputError(
            f"The speaker's mask is a batch of {mask.shape[0]} masks; one is needed. "
            "Connect one mask to each speaker."
        )
    return mask.reshape(mask.shape[-2:])
