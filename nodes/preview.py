"""Preview nodes: the speakers over the photo and on the timeline; a video over its waveform."""

from __future__ import annotations

from typing import Any

from comfy_api.latest import io, ui
from torch import Tensor

from ..multitalk_core.config import FPS
from ..multitalk_core.geometry import Size
from ..multitalk_core.inputs.masks import speaker_masks
from ..multitalk_core.inputs.photo import to_photo
from ..multitalk_core.inputs.voices import SAMPLE_RATE
from .drawing.speakers import Lane, draw_speakers
from .drawing.strip import draw_strip
from .sockets import AudioEmbeds, SpokenAudio


class PreviewSpeakers(io.ComfyNode):
    """Preview Speakers."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="MTK_PreviewSpeakers",
            display_name="MultiTalk Preview Speakers",
            category="MultiTalk",
            description=(
                "Shows before sampling where each speaker is in the photo and when each voice is "
                "heard, exactly as MultiTalk Sampler will use them. A wrong mask, voice or start "
                "time shows here within seconds."
            ),
            search_aliases=["multitalk", "show masks", "who is where", "speaker preview"],
            inputs=[
                io.Image.Input("image", tooltip="The photo that MultiTalk Sampler gets."),
                AudioEmbeds.Input(
                    "audio_embeds", tooltip="The audio features, from MultiTalk Audio Embeds."
                ),
            ],
            outputs=[
                io.Image.Output(display_name="preview", tooltip="The picture that the node shows.")
            ],
            hidden=[io.Hidden.prompt, io.Hidden.extra_pnginfo],
            is_output_node=True,
        )

    @classmethod
    def execute(cls, image: Tensor, audio_embeds: SpokenAudio) -> io.NodeOutput:
        photo = to_photo(image)
        masks = speaker_masks(audio_embeds.regions, photo=Size(*photo.shape[:2]))
        timeline = audio_embeds.timeline
        spans = zip(timeline.tracks, timeline.starts, timeline.stops, strict=True)
        picture = draw_speakers(
            photo,
            masks=masks[:-1],  # without the background
            lanes=[
                Lane(track, start / SAMPLE_RATE, stop / SAMPLE_RATE) for track, start, stop in spans
            ],
            sample_rate=SAMPLE_RATE,
            seconds=timeline.num_frames / FPS,
        )
        return _shown(picture, cls)


class PreviewStrip(io.ComfyNode):
    """Preview Strip."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="MTK_PreviewStrip",
            display_name="MultiTalk Preview Strip",
            category="MultiTalk",
            description=(
                "Shows a video as one picture: a strip of frames above the waveform of its sound. "
                "A mark shows the time of each frame in the waveform, so that you can compare the "
                "lips with the voice."
            ),
            search_aliases=["multitalk", "waveform", "filmstrip", "contact sheet", "lip sync"],
            inputs=[io.Video.Input("video", tooltip="Any video, with or without sound.")],
            outputs=[
                io.Image.Output(display_name="strip", tooltip="The picture that the node shows.")
            ],
            hidden=[io.Hidden.prompt, io.Hidden.extra_pnginfo],
            is_output_node=True,
        )

    @classmethod
    def execute(cls, video: Any) -> io.NodeOutput:
        parts = video.get_components()
        waveform = None if parts.audio is None else parts.audio["waveform"][0]
        picture = draw_strip(
            parts.images,
            waveform=waveform,
            sample_rate=1 if parts.audio is None else int(parts.audio["sample_rate"]),
            fps=float(parts.frame_rate),
        )
        return _shown(picture, cls)


def _shown(picture: Tensor, node: type[io.ComfyNode]) -> io.NodeOutput:
    """Show a picture `(H, W, 3)` uint8 on the node and return it as IMAGE."""
    image = picture[None].float() / 255
    return io.NodeOutput(image, ui=ui.PreviewImage(image, cls=node))
