"""MultiTalk on Wan2.1 in GGUF: a photo and voices become a talking video.

A ComfyUI node pack; importing it does nothing until the host asks for its nodes.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from comfy_api.latest import ComfyExtension

WEB_DIRECTORY = "./web"


async def comfy_entrypoint() -> ComfyExtension:
    """Build the extension; the only place that imports nodes, so importing the pack is free."""
    try:
        from .nodes.extension import MultiTalkExtension
    except Exception:  # the host logs one line and hides the traceback
        logging.getLogger(__name__).exception("MultiTalk nodes failed to load")
        raise
    return MultiTalkExtension()
