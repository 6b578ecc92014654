"""The list of nodes that ComfyUI asks the pack for."""

from __future__ import annotations

from comfy_api.latest import ComfyExtension, io

from .audio import MultiTalkAudioEmbeds
from .example import Example
from .guider import MultiTalkGuider
from .host.folders import offer_tiny_vae
from .loaders import (
    LoadAdapter,
    LoadCLIPVision,
    LoadLora,
    LoadUMT5,
    LoadVAE,
    LoadWan,
    LoadWav2Vec2,
)
from .preview import PreviewSpeakers, PreviewStrip
from .sampler import MultiTalkSampler
from .sigmas import MultiTalkSigmas
from .speakers import MultiTalkSpeaker


class MultiTalkExtension(ComfyExtension):
    """The pack."""

    async def get_node_list(self) -> list[type[io.ComfyNode]]:
        """Give every node, in the order of a workflow."""
        offer_tiny_vae()
        return [
            LoadWan,
            LoadAdapter,
            LoadLora,
            LoadUMT5,
            LoadCLIPVision,
            LoadWav2Vec2,
            LoadVAE,
            Example,
            MultiTalkSpeaker,
            MultiTalkAudioEmbeds,
            PreviewSpeakers,
            MultiTalkSampler,
            MultiTalkGuider,
            MultiTalkSigmas,
            PreviewStrip,
        ]
