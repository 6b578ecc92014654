"""MultiTalk Example: a photo and a voice for the template that runs without any files."""

from __future__ import annotations

from comfy_api.latest import io

from .host.example import read_photo, read_voice


class Example(io.ComfyNode):
    """MultiTalk Example."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="MTK_Example",
            display_name="MultiTalk Example",
            category="MultiTalk",
            description=(
                "Loads the example photo (a drawn person) and the example voice (one sentence "
                "of synthetic speech) that come with the pack. Use them with the tiny models, "
                "which were trained on such drawings only."
            ),
            search_aliases=["multitalk", "demo", "sample photo", "sample voice"],
            inputs=[],
            outputs=[
                io.Image.Output(display_name="image", tooltip="The photo, for MultiTalk Sampler."),
                io.Audio.Output(display_name="audio", tooltip="The voice, for MultiTalk Speaker."),
            ],
        )

    @classmethod
    def execute(cls) -> io.NodeOutput:
        return io.NodeOutput(read_photo(), read_voice())
