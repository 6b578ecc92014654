"""MultiTalk Guider: text and audio guidance of one segment, for ComfyUI's own samplers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from comfy_api.latest import io
from torch import Tensor

from ..multitalk_core.config import ApgConfig, SamplingConfig
from ..multitalk_core.errors import InputError
from ..multitalk_core.geometry import Size
from ..multitalk_core.inputs.photo import to_photo
from ..multitalk_core.inputs.scene import place_speakers
from ..multitalk_core.inputs.speech import Speech
from .host.guider import LatentGuider
from .host.session import check_features, talking_transformer
from .settings import fast_inputs, guidance_inputs
from .sockets import AudioEmbeds, SpokenAudio


class MultiTalkGuider(io.ComfyNode):
    """MultiTalk Guider."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="MTK_Guider",
            display_name="MultiTalk Guider",
            category="MultiTalk",
            description=(
                "Guides SamplerCustomAdvanced by text and audio, so that ComfyUI's own nodes "
                "sample one segment. Use the conditioning and the latent of WanImageToVideo. "
                "For a whole video use MultiTalk Sampler."
            ),
            search_aliases=["multitalk", "infinitetalk", "audio guidance", "cfg guider"],
            inputs=[
                io.Model.Input(
                    "model", tooltip="The model with audio layers, from Load MultiTalk Adapter."
                ),
                io.Conditioning.Input(
                    "positive", tooltip="The prompt with the start image, from WanImageToVideo."
                ),
                io.Conditioning.Input(
                    "negative",
                    optional=True,
                    tooltip=(
                        "The negative prompt with the start image, from WanImageToVideo. It is "
                        "required unless text_guidance is 1."
                    ),
                ),
                AudioEmbeds.Input(
                    "audio_embeds", tooltip="The audio features, from MultiTalk Audio Embeds."
                ),
                io.Image.Input(
                    "image",
                    optional=True,
                    tooltip=(
                        "The photo that the masks and boxes of the speakers refer to. It is "
                        "required for two speakers."
                    ),
                ),
                io.Int.Input(
                    "start_frame",
                    default=0,
                    min=0,
                    max=1_000_000,
                    tooltip=(
                        "Number of the video frame at which the segment begins, at 25 frames a "
                        "second. The length of the segment is that of the latent."
                    ),
                ),
                *guidance_inputs(),
                *fast_inputs(),
            ],
            outputs=[
                io.Guider.Output(
                    display_name="guider", tooltip="The guider, for SamplerCustomAdvanced."
                )
            ],
        )

    @classmethod
    def execute(
        cls,
        model: Any,
        positive: list[Any],
        audio_embeds: SpokenAudio,
        start_frame: int,
        apg: bool,
        negative: list[Any] | None = None,
        image: Tensor | None = None,
        **settings: Any,
    ) -> io.NodeOutput:
        speech = audio_embeds.speech
        check_features(talking_transformer(model), speech, encoder=audio_embeds.encoder)
        _check_start(start_frame, speech)
        guider = LatentGuider(
            model,
            speech=speech,
            start_frame=start_frame,
            masks_at=_masks_at(audio_embeds, image),
            config=SamplingConfig(**settings, apg=ApgConfig() if apg else None),
        )
        guider.set_conds(positive, negative)
        return io.NodeOutput(guider)


def _check_start(start_frame: int, speech: Speech) -> None:
    if start_frame >= speech.num_frames:
        raise InputError(
            f"`start_frame` is {start_frame}, but the sound has {speech.num_frames} frames. "
            "Lower `start_frame`, or connect a longer voice."
        )


def _masks_at(spoken: SpokenAudio, image: Tensor | None) -> Callable[[Size], Tensor | None]:
    """Return a function from the video's size, which only the latent has, to the token masks."""
    if len(spoken.regions) == 1:
        return lambda _: None
    if image is None:
        raise InputError(
            "Two speakers need `image`, the photo that their masks and boxes refer to. Connect the "
            "photo that WanImageToVideo gets."
        )
    photo = to_photo(image)
    return lambda size: place_speakers(spoken.regions, photo=photo, size=size)
