"""The shipped workflows in a real ComfyUI on the tiny set: noise to see, but a right file."""

from __future__ import annotations

import json
import math
import wave
from pathlib import Path
from typing import TYPE_CHECKING, Any

import av
import pytest

from comfyui_multitalk.tests.host import graphs
from comfyui_multitalk.tests.support.websocket import Listener

if TYPE_CHECKING:
    from comfyui_multitalk.tests.support.comfyui import Server

pytestmark = pytest.mark.host

EXAMPLES = graphs.ROOT / "workflows" / "inputs"
SOUNDS = {name: ("voice.wav",) for name in graphs.WORKFLOWS}
SOUNDS["two_speakers"] = ("left.wav", "right.wav")
SIZES = {name: (64, 64) for name in graphs.WORKFLOWS}  # width, height
SIZES["two_speakers"] = (64, 48)
SEGMENT_FRAMES = {"one_segment_custom_sampler": 33}


def saved_video(server: Server, history: dict[str, Any]) -> Path:
    shown = [file for output in history["outputs"].values() for file in output.get("images", ())]
    (entry,) = [file for file in shown if file["type"] == "output"]
    return server.base / "output" / entry["subfolder"] / entry["filename"]


def samples_at_16_khz(name: str) -> int:
    with wave.open(str(EXAMPLES / name)) as file:
        return math.ceil(file.getnframes() * 16000 / file.getframerate())


@pytest.mark.parametrize("name", graphs.WORKFLOWS)
def test_workflow_makes_a_video_as_long_as_the_sound(server: Server, name: str) -> None:
    history = server.run(graphs.load(name))
    assert history["status"]["status_str"] == "success", history["status"]
    whole = math.ceil(sum(map(samples_at_16_khz, SOUNDS[name])) / 640)
    num_frames = SEGMENT_FRAMES.get(name, whole)
    with av.open(str(saved_video(server, history))) as file:
        picture, sound = file.streams.video[0], file.streams.audio[0]
        assert picture.average_rate == 25
        assert (picture.width, picture.height) == SIZES[name]
        assert sum(1 for _ in file.decode(picture)) == num_frames
        file.seek(0)
        seconds = sum(frame.samples for frame in file.decode(sound)) / sound.rate
    # AAC comes in blocks of 1024 samples.
    assert num_frames / 25 - 0.001 <= seconds <= num_frames / 25 + 2 * 1024 / sound.rate


def test_saved_video_says_how_it_was_made(server: Server) -> None:
    history = server.run(graphs.short(seed=5))
    with av.open(str(saved_video(server, history))) as file:
        made_by = json.loads(file.metadata["prompt"])
    sampler = graphs.node(made_by, "MTK_Sampler")
    assert sampler["inputs"]["seed"] == 5
    assert graphs.node(made_by, "LoadAudio")["inputs"]["audio"] == "short.wav"


def test_sampler_says_size_and_length(server: Server) -> None:
    history = server.run(graphs.short(longest_side=70, seed=3))
    said = [text for output in history["outputs"].values() for text in output.get("text", ())]
    assert said == ["64 x 64 pixels, 15 frames = 0.60 s"]


def test_same_graph_twice_is_cached_and_a_seed_is_not(server: Server) -> None:
    def ran(history: dict[str, Any]) -> bool:
        cached = [
            m[1]["nodes"] for m in history["status"]["messages"] if m[0] == "execution_cached"
        ]
        return sampler not in cached[0]

    graph = graphs.short(seed=11)
    sampler = next(k for k, v in graph.items() if v["class_type"] == "MTK_Sampler")
    server.run(graph)
    assert not ran(server.run(graph))
    assert ran(server.run(graphs.short(seed=12)))


def test_progress_counts_every_step_with_previews(server: Server) -> None:
    listener = Listener(server.url, client="progress")
    prompt = server.submit(graphs.short(steps=3, seed=21), client="progress")
    counted, previews = [], 0
    for message in listener.messages():
        previews += "binary" in message
        data = message.get("data", {})
        if message["type"] == "progress" and data["prompt_id"] == prompt:
            counted.append((data["value"], data["max"]))
        if message["type"] == "execution_success" and data["prompt_id"] == prompt:
            break
    listener.close()
    assert counted == [(1, 3), (2, 3), (3, 3)]
    assert previews >= 3


def test_interrupt_stops_the_sampler_and_the_next_run_works(server: Server) -> None:
    listener = Listener(server.url, client="interrupt")
    prompt = server.submit(graphs.short(steps=1000, seed=31), client="interrupt")
    for message in listener.messages():
        if message["type"] == "progress" and message["data"]["value"] >= 1:
            break
    listener.close()
    assert server.post("/interrupt", {"prompt_id": prompt})[0] == 200
    history = server.wait(prompt, seconds=60)
    assert "execution_interrupted" in [kind for kind, _ in history["status"]["messages"]]
    assert not history["outputs"]
    assert server.run(graphs.short(seed=32))["status"]["status_str"] == "success"


@pytest.mark.parametrize("method", ["infinitetalk", "flashtalk"])
def test_other_methods_and_one_pass_a_step_run(server: Server, method: str) -> None:
    graph = graphs.short(method=method, steps=2, text_guidance=1.0, audio_guidance=1.0, seed=41)
    del graphs.node(graph, "MTK_Sampler")["inputs"]["negative"]
    assert server.run(graph)["status"]["status_str"] == "success"


def test_lora_loader_takes_the_model(server: Server) -> None:
    graph = graphs.short(seed=51)
    graph["lora"] = {
        "class_type": "LoraLoaderModelOnly",
        "inputs": {"model": ["1", 0], "lora_name": "lora_tiny.safetensors", "strength_model": 1.0},
    }
    graphs.node(graph, "MTK_LoadAdapter")["inputs"]["model"] = ["lora", 0]
    assert server.run(graph)["status"]["status_str"] == "success"
