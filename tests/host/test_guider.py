"""MultiTalk Guider and MultiTalk Sigmas with ComfyUI's own sampling nodes, on a server."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from comfyui_multitalk.tests.host import graphs
from comfyui_multitalk.tests.support.comfyui import failure
from comfyui_multitalk.tests.support.websocket import Listener

if TYPE_CHECKING:
    from comfyui_multitalk.tests.support.comfyui import Server

pytestmark = pytest.mark.host


def guided(*, steps: int = 2, **changes: Any) -> graphs.Graph:
    """Give the workflow of one speaker with ComfyUI's nodes in place of our sampler."""
    graph = graphs.short()
    wired = graphs.node(graph, "MTK_Sampler")["inputs"]
    kept = graphs.without(graph, "MTK_Sampler")
    for kind in ("SaveVideo", "MTK_PreviewStrip"):
        kept = graphs.without(kept, kind)
    parts: dict[str, tuple[str, dict[str, Any]]] = {
        "seen": (
            "CLIPVisionEncode",
            {"clip_vision": wired["clip_vision"], "image": wired["image"], "crop": "none"},
        ),
        "wan": (
            "WanImageToVideo",
            {
                **{name: wired[name] for name in ("positive", "negative", "vae")},
                "start_image": wired["image"],
                "clip_vision_output": ["seen", 0],
                "width": 64,
                "height": 48,
                "length": 9,
                "batch_size": 1,
            },
        ),
        "guider": (
            "MTK_Guider",
            {
                **{name: wired[name] for name in ("model", "audio_embeds")},
                "positive": ["wan", 0],
                "negative": ["wan", 1],
                "start_frame": 4,
                "text_guidance": 5.0,
                "audio_guidance": 4.0,
                "audio_strength": 1.0,
                "apg": False,
                **changes,
            },
        ),
        "sigmas": ("MTK_Sigmas", {"steps": steps, "shift": 7.0}),
        "noise": ("RandomNoise", {"noise_seed": 3}),
        "chosen": ("KSamplerSelect", {"sampler_name": "euler"}),
        "run": (
            "SamplerCustomAdvanced",
            {
                "noise": ["noise", 0],
                "guider": ["guider", 0],
                "sampler": ["chosen", 0],
                "sigmas": ["sigmas", 0],
                "latent_image": ["wan", 2],
            },
        ),
        "decoded": ("VAEDecode", {"samples": ["run", 0], "vae": wired["vae"]}),
        "shown": ("PreviewImage", {"images": ["decoded", 0]}),
    }
    nodes = {key: {"class_type": kind, "inputs": given} for key, (kind, given) in parts.items()}
    return {**kept, **nodes}


def test_guider_runs_in_comfyuis_sampler_with_progress_and_previews(server: Server) -> None:
    listener = Listener(server.url, client="guider")
    prompt = server.submit(guided(), client="guider")
    counted, previews = [], 0
    for message in listener.messages():
        previews += "binary" in message
        data = message.get("data", {})
        if message["type"] == "progress" and data["node"] == "run":
            counted.append((data["value"], data["max"]))
        if message["type"] in ("execution_success", "execution_error"):
            break
    listener.close()
    history = server.wait(prompt)
    assert history["status"]["status_str"] == "success", history["status"]
    assert counted == [(1, 2), (2, 2)]
    assert previews >= 2
    assert len(history["outputs"]["shown"]["images"]) == 9


def test_guiders_mistake_is_shown_on_the_guider(server: Server) -> None:
    error = failure(server.run(guided(start_frame=500)))
    assert error["node_type"] == "MTK_Guider"
    assert "`start_frame` is 500, but the sound has 15 frames" in error["exception_message"]
