"""Memory of a server: `/free`, many runs in a row, models side by side."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch
from safetensors.torch import save_file

from comfyui_multitalk.dev.make_tiny import SEED
from comfyui_multitalk.dev.tiny import wan
from comfyui_multitalk.tests.host.digests import free, shown, talking
from comfyui_multitalk.tests.host.graphs import Graph
from comfyui_multitalk.tools.convert import convert

if TYPE_CHECKING:
    from comfyui_multitalk.tests.support.comfyui import Server

pytestmark = pytest.mark.host

Q8_0 = "wan-Q8_0.gguf"
CORE = "core_wan.safetensors"


def alive(server: Server) -> int:
    return int(server.get("/multitalk_tests/alive")["weights"])


def memory(server: Server) -> dict[str, int]:
    return dict(server.get("/multitalk_tests/memory"))


def core(*, seed: int = 0) -> Graph:
    """Give a workflow of ComfyUI's own Wan model."""
    nodes: dict[str, tuple[str, dict[str, Any]]] = {
        "model": ("UNETLoader", {"unet_name": CORE, "weight_dtype": "default"}),
        "prompt": ("MultiTalkTestsWideConditioning", {}),
        "latent": (
            "EmptyHunyuanLatentVideo",
            {"width": 64, "height": 64, "length": 5, "batch_size": 1},
        ),
        "sampler": (
            "KSampler",
            {"model": ["model", 0], "positive": ["prompt", 0], "negative": ["prompt", 0]}
            | {"latent_image": ["latent", 0], "seed": seed, "steps": 2, "cfg": 1.0}
            | {"sampler_name": "euler", "scheduler": "simple", "denoise": 1.0},
        ),
        "digest": ("MultiTalkTestsDigest", {"latent": ["sampler", 0]}),
    }
    return {name: {"class_type": kind, "inputs": inputs} for name, (kind, inputs) in nodes.items()}


@pytest.fixture(scope="module")
def other_models(server: Server) -> Path:
    """Give the server the tiny base as Q8_0 too, and a model for ComfyUI's own loader."""
    folder = server.base / "models" / "diffusion_models"
    base, _ = wan.base_and_adapter(seed=SEED)
    plain = server.base / "base.safetensors"
    save_file({k: v.contiguous() for k, v in base.items()}, plain)
    convert(plain, folder / Q8_0, type="Q8_0", num_heads=wan.CONFIG.num_heads)
    save_file(core_weights(), folder / CORE)
    return folder


def core_weights() -> dict[str, torch.Tensor]:
    """Draw a text-to-video Wan of one narrow block, wide where ComfyUI fixes the width."""
    dim, wide = 128, 4096
    shapes: dict[str, tuple[int, ...]] = {
        "patch_embedding.weight": (dim, 16, 1, 2, 2),
        "patch_embedding.bias": (dim,),
        "head.modulation": (1, 2, dim),
        "blocks.0.modulation": (1, 6, dim),
    }
    linear = {"text_embedding.0": (dim, wide), "text_embedding.2": (dim, dim)}
    linear |= {"time_embedding.0": (dim, 256), "time_embedding.2": (dim, dim)}
    linear |= {"time_projection.1": (6 * dim, dim), "head.head": (64, dim)}
    linear |= {"blocks.0.ffn.0": (dim, dim), "blocks.0.ffn.2": (dim, dim)}
    for attention in ("self_attn", "cross_attn"):
        linear |= {f"blocks.0.{attention}.{part}": (dim, dim) for part in "qkvo"}
        shapes |= {f"blocks.0.{attention}.norm_{part}.weight": (dim,) for part in "qk"}
    shapes |= {"blocks.0.norm3.weight": (dim,), "blocks.0.norm3.bias": (dim,)}
    for name, shape in linear.items():
        shapes |= {f"{name}.weight": shape, f"{name}.bias": shape[:1]}
    generator = torch.Generator().manual_seed(1)
    return {
        name: torch.randn(shape, generator=generator) * (shape[-1] ** -0.5)
        for name, shape in shapes.items()
    }


def test_free_leaves_no_weight_of_ours(server: Server) -> None:
    shown(server.run(talking(seed=101)))
    status, watched = server.post("/multitalk_tests/watch", {})
    assert status == 200
    assert watched["models"] >= 2  # the base, and the same with the adapter
    assert watched["weights"] > 100
    assert alive(server) == watched["weights"]
    deadline = time.monotonic() + 30
    while alive(server) and time.monotonic() < deadline:
        free(server)  # again where a garbage collection was running already
        time.sleep(0.5)
    assert alive(server) == 0


def test_ten_runs_in_a_row_hold_no_more_than_three(server: Server) -> None:
    seen = []
    for number in range(10):
        shown(server.run(talking(seed=200 + number)))
        seen.append(memory(server))
    assert max(one["tensors"] for one in seen[3:]) <= max(one["tensors"] for one in seen[:3])
    growth = min(one["resident"] for one in seen[7:]) - max(one["resident"] for one in seen[:3])
    assert growth < 16 * 2**20  # bytes; an output kept a run would be found by the count above


def test_two_quantisations_in_the_queue_give_what_each_gives_alone(
    server: Server, other_models: Path
) -> None:
    both = [talking(seed=7), talking(base=Q8_0, seed=7)]
    alone = []
    for graph in both:
        free(server)
        alone.append(shown(server.run(graph)))
    assert alone[0] != alone[1]
    free(server)
    queued = [server.submit(graph) for graph in (*both, talking(seed=8))]
    together = [shown(server.wait(prompt)) for prompt in queued]
    assert together[:2] == alone
    assert shown(server.run(both[0])) == alone[0]


def test_model_of_comfyui_beside_ours_disturbs_neither(server: Server, other_models: Path) -> None:
    ours, theirs = talking(seed=9), core(seed=9)
    alone = []
    for graph in (ours, theirs):
        free(server)
        alone.append(shown(server.run(graph)))
    free(server)
    for other in (core(seed=10), talking(seed=10)):  # so that each is loaded beside the other
        shown(server.run(other))
    queued = [server.submit(graph) for graph in (ours, theirs)]
    assert [shown(server.wait(prompt)) for prompt in queued] == alone
