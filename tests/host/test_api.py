"""ComfyUI's HTTP interface with our nodes: queue, interrupts, clients, answers to mistakes.

What the messages of our own errors say is tested in test_errors.py; here it is their shape.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import pytest

from comfyui_multitalk.tests.host import graphs
from comfyui_multitalk.tests.support.comfyui import failure
from comfyui_multitalk.tests.support.websocket import Listener

if TYPE_CHECKING:
    from comfyui_multitalk.tests.support.comfyui import Server

pytestmark = pytest.mark.host

Message = dict[str, Any]
Change = Callable[[graphs.Graph], object]


@contextmanager
def listening(server: Server, client: str) -> Iterator[Listener]:
    """Give the websocket of a client."""
    listener = Listener(server.url, client=client)
    try:
        yield listener
    finally:
        listener.close()


def until(listener: Listener, kind: str, prompt: str) -> list[Message]:
    """Give the messages up to the first of a kind about a prompt."""
    seen = []
    for message in listener.messages():
        seen.append(message)
        if message["type"] == kind and message["data"]["prompt_id"] == prompt:
            break
    return seen


@contextmanager
def sampling(server: Server, client: str) -> Iterator[str]:
    """Give a prompt that samples, and will for long; it is interrupted at the end."""
    with listening(server, client) as listener:
        prompt = server.submit(graphs.short(steps=1000, seed=61), client=client)
        until(listener, "progress", prompt)
        yield prompt
        server.post("/interrupt", {"prompt_id": prompt})
        server.wait(prompt, seconds=60)


def waiting(server: Server) -> list[str]:
    """List the prompts that wait."""
    return [entry[1] for entry in server.get("/queue")["queue_pending"]]


def running(server: Server) -> list[str]:
    """List the prompts that run."""
    return [entry[1] for entry in server.get("/queue")["queue_running"]]


def test_prompt_taken_from_the_queue_never_runs(server: Server) -> None:
    with sampling(server, "queue") as first:
        second, third = (server.submit(graphs.short(seed=seed)) for seed in (62, 63))
        assert waiting(server) == [second, third]
        assert server.post("/queue", {"delete": [second]})[0] == 200
        assert waiting(server) == [third]
        assert server.post("/queue", {"clear": True})[0] == 200
        assert waiting(server) == []
        assert running(server) == [first]
    assert server.get(f"/history/{second}") == {}
    assert server.get(f"/history/{third}") == {}


def test_running_prompt_is_stopped_by_its_interrupt_alone(server: Server) -> None:
    with sampling(server, "interrupt") as prompt:
        server.post("/queue", {"delete": [prompt]})
        server.post("/interrupt", {"prompt_id": "00000000-0000-4000-8000-000000000000"})
        assert running(server) == [prompt]
    assert running(server) == []
    history = server.get(f"/history/{prompt}")[prompt]
    kinds = dict(history["status"]["messages"])
    assert kinds["execution_interrupted"]["node_type"] == "MTK_Sampler"
    assert history["status"]["completed"] is False
    assert history["outputs"] == {}


def test_every_client_hears_of_its_own_prompt_alone(server: Server) -> None:
    with listening(server, "one") as one, listening(server, "two") as two:
        first = server.submit(graphs.short(steps=2, seed=64), client="one")
        second = server.submit(graphs.short(steps=3, seed=65), client="two")
        heard_by_one = until(one, "execution_success", first)
        heard_by_two = until(two, "execution_success", second)
    assert steps(heard_by_one) == [(first, 1, 2), (first, 2, 2)]
    assert steps(heard_by_two) == [(second, 1, 3), (second, 2, 3), (second, 3, 3)]
    assert sum("binary" in message for message in heard_by_one) >= 2  # previews


def steps(messages: list[Message]) -> list[tuple[str, int, int]]:
    """List a client's progress messages: prompt, step, number of steps."""
    data = [message["data"] for message in messages if message["type"] == "progress"]
    return [(entry["prompt_id"], entry["value"], entry["max"]) for entry in data]


def test_messages_tell_what_the_sampler_does_in_order(server: Server) -> None:
    with listening(server, "order") as listener:
        graph = graphs.short(seed=66)
        sampler = key(graph, "MTK_Sampler")
        prompt = server.submit(graph, client="order")
        heard = until(listener, "execution_success", prompt)
    kinds = [
        message["type"]
        for message in heard
        if message["type"] in ("execution_start", "execution_cached", "execution_success")
        or sampler in (message.get("data", {}).get(name) for name in ("node", "display_node"))
    ]
    assert [kind for kind in dict.fromkeys(kinds) if kind != "progress_state"] == [
        "execution_start", "execution_cached", "executing", "progress", "executed",
        "execution_success",
    ]  # fmt: skip
    states = [message["data"]["nodes"] for message in heard if message["type"] == "progress_state"]
    assert "finished" in [nodes[sampler]["state"] for nodes in states if sampler in nodes]


def test_failed_prompt_has_comfyuis_error_in_its_history(server: Server) -> None:
    graph = graphs.short(seed=67, segment_frames=30)
    history = server.run(graph)
    assert history["status"]["status_str"] == "error"
    assert history["status"]["completed"] is False
    error = failure(history)
    assert error["node_id"] == key(graph, "MTK_Sampler")
    assert error["node_type"] == "MTK_Sampler"
    assert error["exception_type"].rpartition(".")[2] == "InputError"
    assert "`segment_frames` is 30" in error["exception_message"]
    assert any("execute" in line for line in error["traceback"])
    assert {"prompt_id", "executed", "current_inputs", "current_outputs"} <= set(error)


def key(graph: graphs.Graph, kind: str) -> str:
    """Give the id of the first node of a type."""
    return next(number for number, entry in graph.items() if entry["class_type"] == kind)


def put(kind: str, **inputs: Any) -> Change:
    """Set inputs of a node."""
    return lambda graph: graphs.node(graph, kind)["inputs"].update(inputs)


def wire(kind: str, name: str, source: str) -> Change:
    """Connect an input to the first output of a node of a type."""
    return lambda graph: put(kind, **{name: [key(graph, source), 0]})(graph)


def drop(kind: str, name: str) -> Change:
    """Leave an input out."""
    return lambda graph: graphs.node(graph, kind)["inputs"].pop(name)


REJECTED: dict[str, list[tuple[str, str, Change]]] = {
    "required_input_missing": [
        ("MTK_Sampler", "model", drop("MTK_Sampler", "model")),
        ("MTK_LoadWan", "base", drop("MTK_LoadWan", "base")),
        ("MTK_AudioEmbeds", "speakers.speaker0", drop("MTK_AudioEmbeds", "speakers.speaker0")),
    ],
    "invalid_input_type": [
        ("MTK_Sampler", "steps", put("MTK_Sampler", steps="many")),
        ("MTK_Speaker", "start", put("MTK_Speaker", start="soon")),
    ],
    "value_bigger_than_max": [("MTK_Sampler", "steps", put("MTK_Sampler", steps=5000))],
    "value_smaller_than_min": [
        ("MTK_Sampler", "steps", put("MTK_Sampler", steps=0)),
        ("MTK_Speaker", "left", put("MTK_Speaker", left=-1)),
    ],
    "value_not_in_list": [
        ("MTK_Sampler", "method", put("MTK_Sampler", method="hunyuan")),
        ("MTK_AudioEmbeds", "mode", put("MTK_AudioEmbeds", mode="solo")),
    ],
    "return_type_mismatch": [
        ("MTK_Sampler", "model", wire("MTK_Sampler", "model", "MTK_LoadUMT5")),
        ("MTK_Speaker", "audio", wire("MTK_Speaker", "audio", "LoadImage")),
    ],
    "bad_linked_input": [("MTK_Sampler", "model", put("MTK_Sampler", model=["1"]))],
    "custom_validation_failed": [
        ("MTK_LoadWan", "base", put("MTK_LoadWan", base="gone.gguf")),
        ("MTK_LoadAdapter", "adapter", put("MTK_LoadAdapter", adapter="../gone.safetensors")),
        ("MTK_LoadUMT5", "text_encoder", put("MTK_LoadUMT5", text_encoder="gone.gguf")),
        ("MTK_LoadCLIPVision", "clip_vision", put("MTK_LoadCLIPVision", clip_vision="gone")),
        ("MTK_LoadWav2Vec2", "wav2vec2", put("MTK_LoadWav2Vec2", wav2vec2="gone")),
    ],
}
CASES = [(kind, *case) for kind, cases in REJECTED.items() for case in cases]


@pytest.mark.parametrize(
    ("error_type", "node_type", "name", "change"),
    CASES,
    ids=[f"{kind}-{node}.{name}" for kind, node, name, _ in CASES],
)
def test_mistake_is_rejected_in_comfyuis_shape(
    server: Server, error_type: str, node_type: str, name: str, change: Change
) -> None:
    graph = graphs.short()
    change(graph)
    status, answer = server.post("/prompt", {"prompt": graph})
    assert status == 400
    assert answer["error"]["type"] == "prompt_outputs_failed_validation"
    found = answer["node_errors"][key(graph, node_type)]
    assert found["class_type"] == node_type
    assert key(graph, "SaveVideo") in found["dependent_outputs"]
    (error,) = found["errors"]
    assert error["type"] == error_type
    assert name in error["details"] or error["extra_info"]["input_name"] == name
    assert error["message"]
    assert server.get("/queue")["queue_pending"] == []


def test_circle_of_links_is_rejected_in_comfyuis_shape(server: Server) -> None:
    graph = graphs.short()
    wire("MTK_LoadAdapter", "model", "MTK_LoadAdapter")(graph)
    status, answer = server.post("/prompt", {"prompt": graph})
    assert status == 400
    types = [error["type"] for node in answer["node_errors"].values() for error in node["errors"]]
    assert "dependency_cycle" in types


def test_graph_without_output_and_unknown_node_are_rejected(server: Server) -> None:
    graph = graphs.without(graphs.short(), "SaveVideo")
    graph = {number: node for number, node in graph.items() if "Preview" not in node["class_type"]}
    status, answer = server.post("/prompt", {"prompt": graph})
    assert (status, answer["error"]["type"]) == (400, "prompt_no_outputs")
    graph = graphs.short()
    graphs.node(graph, "MTK_Sampler")["class_type"] = "MTK_Gone"
    status, answer = server.post("/prompt", {"prompt": graph})
    assert (status, answer["error"]["type"]) == (400, "missing_node_type")
