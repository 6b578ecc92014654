"""The example photo and voice, so that a template runs before the user has any."""

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
                "A photo and a voice that come with the pack: a drawn person, and one "
                "sentence spoken by a computer. The tiny models know such drawings only."
            ),
            search_aliases=["multitalk", "demo", "sample photo", "sample voice"],
            inputs=[],
            outputs=[
                io.Image.Output(display_name="image", tooltip="To MultiTalk Sampler."),
                io.Audio.Output(display_name="audio", tooltip="To MultiTalk Speaker."),
            ],
        )

    @classmethod
    def execute(cls) -> io.NodeOutput:
        return io.NodeOutput(read_photo(), read_voice())
