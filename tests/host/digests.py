"""Small workflows that end in a digest of their frames or latents, to compare two runs."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from comfyui_multitalk.tests.host import graphs

if TYPE_CHECKING:
    from comfyui_multitalk.tests.support.comfyui import Server

_DIGEST = "digest"


def talking(*, base: str | None = None, seed: int = 0) -> graphs.Graph:
    """Give the workflow of one speaker, ending in a digest of its frames."""
    graph = graphs.short(seed=seed, longest_side=32)
    if base is not None:
        graphs.node(graph, "MTK_LoadWan")["inputs"]["base"] = base
    return _ending_in(graph, "MTK_Sampler", "image")


def segment(**nodes: tuple[str, dict[str, Any]]) -> graphs.Graph:
    """Give the workflow of one segment, ending in a digest of its latents.

    Args:
        **nodes: Nodes for the MODEL to go through before it is guided, as type and inputs.
    """
    graph = graphs.load("one_segment_custom_sampler")
    graphs.node(graph, "MTK_Sigmas")["inputs"]["steps"] = 5
    guider = graphs.node(graph, "MTK_Guider")["inputs"]
    for name, (kind, inputs) in nodes.items():
        graph[name] = {"class_type": kind, "inputs": {"model": guider["model"], **inputs}}
        guider["model"] = [name, 0]
    return _ending_in(graph, "SamplerCustomAdvanced", "latent")


def shown(history: dict[str, Any]) -> str:
    """Give the digest of a run that must have succeeded."""
    assert history["status"]["status_str"] == "success", history["status"]
    return str(history["outputs"][_DIGEST]["text"][0])


def free(server: Server) -> None:
    """Make ComfyUI free its models and cached results.

    ComfyUI misses a request that arrives just before it waits for a prompt, so this asks again.
    """
    for _ in range(60):
        server.post("/free", {"unload_models": True, "free_memory": True})
        for _ in range(10):
            if not server.get("/multitalk_tests/alive")["unheard"]:
                return
            time.sleep(0.05)
    raise AssertionError("ComfyUI did not hear /free")


def _ending_in(graph: graphs.Graph, kind: str, socket: str) -> graphs.Graph:
    """Give the nodes up to the one of a kind, and a digest of its first output."""
    (last,) = (name for name, entry in graph.items() if entry["class_type"] == kind)
    kept, todo = set(), [last]
    while todo:
        name = todo.pop()
        kept.add(name)
        todo += [v[0] for v in graph[name]["inputs"].values() if isinstance(v, list)]
    entry = {"class_type": "MultiTalkTestsDigest", "inputs": {socket: [last, 0]}}
    return {**{name: graph[name] for name in graph if name in kept}, _DIGEST: entry}
