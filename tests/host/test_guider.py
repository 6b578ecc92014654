"""MultiTalk Guider and MultiTalk Sigmas in ComfyUI's own sampling nodes.

Latents are compared by relative norm in float32; the ways to them differ by rounding alone.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from comfyui_multitalk.tests.host import graphs
from comfyui_multitalk.tests.support.comfyui import failure
from comfyui_multitalk.tests.support.websocket import Listener

if TYPE_CHECKING:
    from comfyui_multitalk.tests.support.comfyui import Server

pytestmark = pytest.mark.host

ROUNDING = 1e-5
Sampled = dict[str, Any]
RUNS = (
    *("three passes, 1", "text alone, 1", "audio alone, 1", "one pass, 1", "apg, 1"),
    *("half the voice, 1", "three passes, 2", "audio alone, 2"),
)


@pytest.mark.parametrize("run", RUNS)
def test_guider_with_euler_gives_the_samplers_latents(sampled: Sampled, run: str) -> None:
    assert sampled["equality"][run]["guider"] < ROUNDING


def test_every_scale_gives_other_latents(sampled: Sampled) -> None:
    differing = sampled["differing"]
    assert min(differing.values()) > 100 * ROUNDING, differing


def test_guider_begins_at_the_frame_it_is_told(sampled: Sampled) -> None:
    later = sampled["later"]
    assert later["from_there"] < ROUNDING
    assert later["from_the_start"] > 10 * ROUNDING


def test_passes_of_a_step_are_one_batch(sampled: Sampled) -> None:
    patches = sampled["patches"]
    assert patches["one_speaker"] == [[0, 1, 2], [0, 1, 2]]
    # Though silence is one stream and two speakers are two.
    assert patches["two_speakers"] == [[0, 1, 2], [0, 1, 2]]


def test_patches_of_the_guidance_see_and_change_the_passes(sampled: Sampled) -> None:
    patches = sampled["patches"]
    assert patches["wrapped"] == 0
    # Both are made to leave the full pass alone.
    assert patches["post_cfg"] < ROUNDING
    assert patches["pre_cfg"] < ROUNDING
    assert patches["scales"] == [5.0, 5.0]  # the text guidance, as `cfg` is elsewhere


def test_patch_that_replaces_the_formula_is_said_to_have_no_effect(sampled: Sampled) -> None:
    assert sampled["formula"]["changed"] == 0
    assert "no effect" in sampled["formula"]["said"]


def test_combined_prompts_and_batches_work_as_in_comfyui(sampled: Sampled) -> None:
    prompts = sampled["prompts"]
    assert prompts["repeatable"]
    assert prompts["twice"] < ROUNDING
    assert prompts["batch"] < ROUNDING
    assert prompts["for_a_while"] > 10 * ROUNDING


def test_lora_hooked_to_the_prompts_is_the_lora_in_the_model(sampled: Sampled) -> None:
    hooked = sampled["hooked"]
    assert hooked["effect"] > 0.01
    assert hooked["guider"] < ROUNDING
    assert hooked["sampler"] < ROUNDING


@pytest.mark.parametrize(
    ("mistake", "fix"),
    [
        ("base", "Put Load MultiTalk Adapter"),
        ("no negative", "Connect `negative`"),
        ("no photo", "Two speakers need `image`"),
        ("late", "`start_frame` is 9, but the sound has 9 frames"),
        ("picture", "Connect the latent of WanImageToVideo"),
    ],
)
def test_wrong_wiring_is_said_with_the_fix(sampled: Sampled, mistake: str, fix: str) -> None:
    assert fix in sampled["mistakes"][mistake]


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
