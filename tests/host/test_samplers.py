"""The MultiTalk Sampler on a server: its inputs, progress, caching and interruption."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import torch
from PIL import Image

from comfyui_multitalk.tests.host import graphs
from comfyui_multitalk.tests.support.comfyui import failure
from comfyui_multitalk.tests.support.websocket import Listener

if TYPE_CHECKING:
    from comfyui_multitalk.tests.support.comfyui import Server

pytestmark = pytest.mark.host

FAST = {
    "text_guidance_start": 0.0,
    "text_guidance_end": 1.0,
    "audio_guidance_start": 0.0,
    "audio_guidance_end": 1.0,
    "step_cache": 0.0,
}
"""The fast modes' inputs, with the values that leave them off."""


def frames(server: Server, graph: graphs.Graph) -> torch.Tensor:
    """Run a graph and give the frames of the sampler as bytes."""
    graph = graphs.without(graphs.without(graph, "SaveVideo"), "MTK_PreviewStrip")
    sampler = next(k for k, v in graph.items() if v["class_type"] == "MTK_Sampler")
    graph["shown"] = {"class_type": "PreviewImage", "inputs": {"images": [sampler, 0]}}
    history = server.run(graph)
    assert history["status"]["status_str"] == "success", history["status"]
    folder = server.base / "temp"
    pictures = []
    for entry in history["outputs"]["shown"]["images"]:
        with Image.open(folder / entry["subfolder"] / entry["filename"]) as picture:
            data = bytearray(picture.convert("RGB").tobytes())
        pictures.append(torch.frombuffer(data, dtype=torch.uint8))
    return torch.stack(pictures)


def test_prompt_from_before_there_was_a_choice_gives_the_same_video(server: Server) -> None:
    old = graphs.short(seed=61)
    for name in ("sampler_name", "scheduler", *FAST):
        graphs.node(old, "MTK_Sampler")["inputs"].pop(name, None)
    new = graphs.short(seed=61, sampler_name="euler", scheduler="multitalk", **FAST)
    other = graphs.short(seed=61, steps=2, sampler_name="uni_pc", scheduler="simple")
    expected = frames(server, old)
    assert torch.equal(frames(server, new), expected)
    assert not torch.equal(frames(server, other), expected)


@pytest.mark.parametrize(
    ("sampler_name", "scheduler"), [("dpmpp_2m_sde", "multitalk"), ("uni_pc", "beta")]
)
def test_progress_counts_the_steps_of_every_segment(
    server: Server, sampler_name: str, scheduler: str
) -> None:
    graph = graphs.short(
        steps=2,
        segment_frames=9,
        motion_frames=1,
        seed=71,
        sampler_name=sampler_name,
        scheduler=scheduler,
    )
    listener = Listener(server.url, client="samplers")
    server.submit(graph, client="samplers")
    counted, previews = [], 0
    for message in listener.messages():
        previews += "binary" in message
        data = message.get("data", {})
        if message["type"] == "progress":
            counted.append((data["value"], data["max"]))
        if message["type"] in ("execution_success", "execution_error"):
            break
    listener.close()
    assert message["type"] == "execution_success"
    assert counted == [(1, 4), (2, 4), (3, 4), (4, 4)]
    assert previews >= 4


def executed(listener: Listener) -> list[str]:
    """Give the nodes that a prompt executes, in order."""
    names = []
    for message in listener.messages():
        if message["type"] == "executing" and message["data"]["node"]:
            names.append(message["data"]["node"])
        if message["type"].startswith("execution_") and message["type"] not in (
            "execution_start",
            "execution_cached",
        ):
            break
    return names


def test_new_prompt_does_not_hear_the_voices_again(server: Server) -> None:
    graph = graphs.short(seed=81)
    server.run(graph)
    graphs.node(graph, "CLIPTextEncode")["inputs"]["text"] = "a person laughs"
    listener = Listener(server.url, client="again")
    server.submit(graph, client="again")
    kinds = {graph[name]["class_type"] for name in executed(listener)}
    listener.close()
    assert {"CLIPTextEncode", "MTK_Sampler"} <= kinds
    assert not kinds & {"MTK_AudioEmbeds", "MTK_Speaker", "MTK_LoadWav2Vec2", "MTK_LoadWan"}


def test_interrupted_run_is_not_taken_for_a_whole_one(server: Server) -> None:
    graph = graphs.short(steps=12, segment_frames=9, motion_frames=1, seed=91)
    listener = Listener(server.url, client="interrupted")
    prompt = server.submit(graph, client="interrupted")
    for message in listener.messages():  # in the second of two segments
        if message["type"] == "progress" and message["data"]["value"] >= 13:
            break
    listener.close()
    server.post("/interrupt", {"prompt_id": prompt})
    history = server.wait(prompt, seconds=60)
    assert "execution_interrupted" in [kind for kind, _ in history["status"]["messages"]]
    assert not history["outputs"]
    listener = Listener(server.url, client="whole")
    prompt = server.submit(graph, client="whole")
    counted = []
    for message in listener.messages():
        if message["type"] == "progress":
            counted.append(message["data"]["value"])
        if message["type"] == "execution_success":
            break
    listener.close()
    assert counted == list(range(1, 25))
    said = [t for out in server.wait(prompt)["outputs"].values() for t in out.get("text", ())]
    assert said == ["64 x 64 pixels, 15 frames = 0.60 s"]


def test_unknown_sampler_is_rejected_as_comfyui_does(server: Server) -> None:
    status, answer = server.post("/prompt", {"prompt": graphs.short(sampler_name="ddpm")})
    assert status == 400
    ((error,),) = [entry["errors"] for entry in answer["node_errors"].values()]
    assert error["type"] == "value_not_in_list"


def test_part_without_steps_is_said_on_the_sampler(server: Server) -> None:
    graph = graphs.short(text_guidance_start=0.5, text_guidance_end=0.5)
    error = failure(server.run(graph))
    assert error["node_type"] == "MTK_Sampler"
    assert (
        "`text_guidance_start` is 0.5 and `text_guidance_end` is 0.5" in error["exception_message"]
    )
