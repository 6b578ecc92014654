"""A custom node of the tests' server: watches our weights by weak reference, shows digests.

`POST /multitalk_tests/watch` begins to watch every weight of ours that is alive; `GET
/multitalk_tests/alive` tells how many of them still are, `/multitalk_tests/memory` what the process
holds. None of them collects garbage.
"""

from __future__ import annotations

import gc
import hashlib
from typing import Any

import psutil
import torch
from aiohttp import web
from server import PromptServer
from torch.multiprocessing.reductions import StorageWeakRef

_OURS = "HostMultiTalk"
_watched: list[StorageWeakRef] = []


@PromptServer.instance.routes.post("/multitalk_tests/watch")
async def watch(_request: web.Request) -> web.Response:
    """Watch the memory behind every parameter and buffer of our transformers."""
    models = [thing for thing in gc.get_objects() if type(thing).__name__ == _OURS]
    _watched[:] = [
        StorageWeakRef(tensor.untyped_storage())
        for one in models
        for tensor in (*one.parameters(), *one.buffers())
    ]
    return web.json_response({"models": len(models), "weights": len(_watched)})


@PromptServer.instance.routes.get("/multitalk_tests/alive")
async def alive(_request: web.Request) -> web.Response:
    """Tell how many watched weights are alive, and whether a request to free is unheard."""
    flags = PromptServer.instance.prompt_queue.flags
    return web.json_response(
        {"weights": sum(not weight.expired() for weight in _watched), "unheard": bool(flags)}
    )


@PromptServer.instance.routes.get("/multitalk_tests/memory")
async def memory(_request: web.Request) -> web.Response:
    """Tell what the process holds; slow, and in the way of a garbage collection."""
    card = torch.cuda.is_available()
    return web.json_response(
        {
            "tensors": sum(issubclass(type(one), torch.Tensor) for one in gc.get_objects()),
            "resident": psutil.Process().memory_info().rss,
            "card": torch.cuda.memory_allocated() if card else 0,
            "most": torch.cuda.max_memory_allocated() if card else 0,
        }
    )


class Digest:
    """Shows the SHA-256 of an IMAGE or LATENT."""

    RETURN_TYPES = ()
    FUNCTION = "show"
    OUTPUT_NODE = True
    CATEGORY = "tests"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:  # noqa: N802
        return {"optional": {"image": ("IMAGE",), "latent": ("LATENT",)}}

    def show(self, image: Any = None, latent: Any = None) -> dict[str, Any]:
        tensor = latent["samples"] if image is None else image
        content = tensor.contiguous().cpu().numpy().tobytes()
        return {"ui": {"text": [hashlib.sha256(content).hexdigest()]}}


class WideConditioning:
    """CONDITIONING of the width ComfyUI's own Wan models have."""

    RETURN_TYPES = ("CONDITIONING",)
    FUNCTION = "make"
    CATEGORY = "tests"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:  # noqa: N802
        return {"required": {}}

    def make(self) -> tuple[Any]:
        return ([[torch.linspace(-1, 1, 8 * 4096).view(1, 8, 4096), {}]],)


NODE_CLASS_MAPPINGS = {
    "MultiTalkTestsDigest": Digest,
    "MultiTalkTestsWideConditioning": WideConditioning,
}
