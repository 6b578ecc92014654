"""Nodes of ComfyUI on a MODEL, in workflows on a server; `inside` tests what each does."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from comfyui_multitalk.tests.host.digests import segment, shown

if TYPE_CHECKING:
    from comfyui_multitalk.tests.support.comfyui import Server

pytestmark = pytest.mark.host

NODES: dict[str, dict[str, Any]] = {
    "ScaleROPE": {
        f"{change}_{axis}": 0.5 for change in ("scale", "shift") for axis in ("x", "y", "t")
    },
    "EasyCache": {
        "reuse_threshold": 3.0,
        "start_percent": 0.0,
        "end_percent": 1.0,
        "verbose": False,
    },
    "WanContextWindowsManual": {
        "context_length": 17,
        "context_overlap": 8,
        "context_schedule": "standard_static",
        "context_stride": 1,
        "closed_loop": False,
        "fuse_method": "pyramid",
        "freenoise": False,
        "retain_first_frame": False,
        "split_conds_to_windows": False,
    },
}


@pytest.mark.parametrize("kind", NODES)
def test_node_on_the_model_reaches_a_guided_segment(server: Server, kind: str) -> None:
    changed = shown(server.run(segment(node=(kind, NODES[kind]))))
    assert changed != shown(server.run(segment()))


def test_lora_node_changes_the_video_and_leaves_no_trace(server: Server) -> None:
    def run(*strengths: float) -> str:
        loras: dict[str, tuple[str, dict[str, Any]]] = {
            f"lora{number}": (
                "LoraLoaderModelOnly",
                {"lora_name": "lora_tiny.safetensors", "strength_model": strength},
            )
            for number, strength in enumerate(strengths)
        }
        return shown(server.run(segment(**loras)))

    plain, one = run(), run(1.0)
    assert one != plain
    assert run(0.0) == plain
    assert run(1.0, 0.5) not in (plain, one)
    assert run() == plain
