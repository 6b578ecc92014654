"""Which attention the speed benchmark computes with, and which the floor goes by."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from comfyui_multitalk.dev.benchmarks.speed import bench as benches
from comfyui_multitalk.dev.benchmarks.speed import floor, memory
from comfyui_multitalk.dev.benchmarks.speed.bench import Bench
from comfyui_multitalk.dev.benchmarks.speed.flops import floor_seconds
from comfyui_multitalk.dev.benchmarks.speed.forward import timed_forward
from comfyui_multitalk.dev.benchmarks.speed.report import Table
from comfyui_multitalk.dev.benchmarks.speed.sampling import sample
from comfyui_multitalk.dev.benchmarks.speed.scales import SCALES
from comfyui_multitalk.dev.benchmarks.speed.weights import random_model
from comfyui_multitalk.multitalk_core.model.attention import attend
from comfyui_multitalk.multitalk_core.model.backends import Backend


@pytest.fixture
def bench() -> Bench:
    scale = SCALES["tiny"].cut(layers=1, latent_frames=3)
    device = torch.device("cpu")
    return Bench(scale=scale, device=device, dtype=torch.float32, seconds=60, repeats=1)


@pytest.mark.parametrize("fastest", ["torch's choice", "flash-attn-4", "torch's flash"])
def test_floor_is_by_the_fastest_attention(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, fastest: str
) -> None:
    def rate(*_: Any, what: str, **__: Any) -> float:
        return 2e12 if what.startswith(f"attention, {fastest}") else 1e12

    monkeypatch.setattr(floor, "measure_rate", rate)
    monkeypatch.setattr(floor, "video_attention", lambda name, **_: Backend(name, attend))
    table = Table("floor", "", ())
    floor.measure(bench, table)
    assert bench.rates is not None
    assert bench.rates.attention == 2e12
    expected = floor_seconds(bench.flops(num_speakers=1), bench.rates)
    assert [row["seconds"] for row in table.rows if "1 speaker" in row["what"]] == [expected]


def test_floor_says_why_an_attention_is_not_offered(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(floor, "measure_rate", lambda *_, **__: 1e12)
    table = Table("floor", "", ())
    floor.device_rates(bench, table)
    assert [row["what"] for row in table.rows] == ["attention, flash-attn-4"]
    assert "not offered" in table.rows[0]["remark"]
    assert "needs a CUDA card" in table.rows[0]["remark"]


def test_models_of_the_benchmark_have_the_commands_automatic_attention(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []
    seen: list[str] = []

    def recording(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        seen.append(table)
        return attend(q, k, v)

    def choose(name: str, **_: Any) -> Backend:
        asked.append(name)
        return Backend("found", recording)

    monkeypatch.setattr(benches, "video_attention", choose)
    model = random_model(bench.scale.config, base="Q4_K", adapter="Q8_0", device=bench.device)
    with torch.no_grad():
        table = "forward"
        timed_forward(bench, model, num_speakers=1)
        table = "step"
        sample(bench, model, passes=1, steps=1, num_speakers=1)
        table = "memory"
        memory.make_video(bench, model, segments=1)
    assert seen == ["forward"] * 2 + ["step", "memory"]
    assert set(asked) == {"auto"}
