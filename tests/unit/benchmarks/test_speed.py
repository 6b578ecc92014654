"""The speed benchmark's pure parts: counted work, random weights, rendered tables."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from comfyui_multitalk.dev.benchmarks.speed.counting import CountingOps, Transfers, decodings
from comfyui_multitalk.dev.benchmarks.speed.e2e import demo_command, shares
from comfyui_multitalk.dev.benchmarks.speed.flops import Rates, floor_seconds, forward_flops
from comfyui_multitalk.dev.benchmarks.speed.measure import Spread
from comfyui_multitalk.dev.benchmarks.speed.packing import random_packed
from comfyui_multitalk.dev.benchmarks.speed.report import Column, Table, write
from comfyui_multitalk.dev.benchmarks.speed.scales import SCALES
from comfyui_multitalk.dev.benchmarks.speed.weights import random_model, weight_type
from comfyui_multitalk.dev.tiny.wan import is_audio
from comfyui_multitalk.multitalk_core.model.dit import MultiTalkModel
from comfyui_multitalk.standalone.arguments import build_request, parse
from comfyui_multitalk.tools.convert import choose_type
from comfyui_multitalk.wan_gguf_loader.dequant import PACKED_TYPES, dequantize

FULL = SCALES["14b"]
NEAR_STD = {"MXFP4": 0.5, "NVFP4": 0.3}  # scales of few bits, without the file's further ones


def test_flops_of_14b_with_one_speaker_are_those_counted_by_hand() -> None:
    flops = forward_flops(FULL.config, FULL.grid, num_speakers=1)
    audio_linears = flops.square // 4 + flops.audio_kv  # 2 of 8 square layers are the adapter's
    base_linears = flops.square * 3 // 4 + flops.ffn_in + flops.ffn_out
    counted = {
        0.7832: base_linears,
        0.0032: flops.context_kv,
        0.8792: flops.self_attention,
        0.0206: flops.cross_attention,
        0.1387: audio_linears + flops.audio_attention,
        1.8251: flops.total,
        0.92: flops.linears,
    }
    for expected, count in counted.items():
        assert count / 1e15 == pytest.approx(expected, rel=0.01)


def test_flops_of_a_second_speaker_are_only_the_voice() -> None:
    one, two = (forward_flops(FULL.config, FULL.grid, num_speakers=n) for n in (1, 2))
    assert two.audio_kv == 2 * one.audio_kv
    assert two.audio_attention == 2 * one.audio_attention
    assert two.total - one.total == one.audio_kv + one.audio_attention


def test_floor_adds_the_time_of_linears_and_attention() -> None:
    flops = forward_flops(FULL.config, FULL.grid, num_speakers=1)
    rates = Rates(square=825e12, ffn_in=825e12, ffn_out=825e12, attention=576e12, copy=4e12)
    expected = flops.linears / 825e12 + flops.attention / 576e12
    assert floor_seconds(flops, rates) == pytest.approx(expected)


@pytest.mark.parametrize("type", sorted(PACKED_TYPES))
def test_random_packed_weights_decode_to_the_wanted_spread(type: str) -> None:
    shape, std = (256, 1024), 1024**-0.5
    packed = random_packed(type, shape, std=std, generator=torch.Generator().manual_seed(5))
    values = dequantize(packed, type, shape)
    assert values.isfinite().all()
    assert float(values.std()) == pytest.approx(std, rel=NEAR_STD.get(type, 0.05))
    assert abs(float(values.mean())) < 0.15 * std


def test_layers_are_packed_as_converted_files_pack_them() -> None:
    shapes = MultiTalkModel(FULL.config, device="meta").state_dict()
    linears = {name: v.shape for name, v in shapes.items() if v.dim() == 2}
    assert len(linears) > 500
    for name, shape in linears.items():
        ours = weight_type(name, base="Q4_K", adapter="Q8_0")
        wanted = "Q8_0" if is_audio(name) else "Q4_K"
        assert ours == choose_type(name, tuple(shape), stored="BF16", type=wanted), name


def test_random_model_is_the_same_for_the_same_seed() -> None:
    config = SCALES["tiny"].cut(layers=1, latent_frames=None).config
    device = torch.device("cpu")
    first, second = (
        random_model(config, base="Q4_K", adapter="Q8_0", device=device).state_dict()
        for _ in range(2)
    )
    assert all(torch.equal(first[name], second[name]) for name in second)
    assert not any(value.is_meta for value in first.values())


def test_table_shows_median_and_spread_in_the_unit_of_its_heading() -> None:
    columns = (Column("what", "what"), Column("time", "ms", 1, 1e3), Column("left", "left"))
    table = Table("t", "a title", columns)
    table.add(what="a|b", time=Spread(0.002, 0.001, 0.0035, 3), left=None)
    assert table.markdown().splitlines()[:5] == [
        "## t: a title",
        "",
        "| what | ms | left |",
        "|---|---|---|",
        "| a\\|b | 2.0 (1.0 to 3.5) | - |",
    ]


def test_tables_are_written_as_json_and_markdown(tmp_path: Path) -> None:
    table = Table("t", "a title", (Column("a", "a"),))
    table.add(a=1.5, s=Spread(0.2, 0.1, 0.3, 3))
    write(tmp_path / "speed", {"device": "none", "cuda": None}, "tiny", [table])
    page = (tmp_path / "speed.md").read_text(encoding="utf-8")
    assert page.startswith("# tiny\n\nRandom weights. device none.\n\n## t: a title\n")
    assert "| 1.500 |" in page
    report = json.loads((tmp_path / "speed.json").read_text(encoding="utf-8"))
    assert report["tables"]["t"]["rows"] == [
        {"a": 1.5, "s": {"median": 0.2, "least": 0.1, "most": 0.3, "repeats": 3}}
    ]


def test_decodings_and_transfers_of_a_layer_are_counted() -> None:
    layer = CountingOps().Linear(256, 2)
    packed = random_packed("Q4_K", (2, 256), std=1, generator=torch.Generator().manual_seed(0))
    layer.store_weight(packed, "Q4_K")
    model = torch.nn.Sequential(layer)
    with Transfers() as transfers:
        model(torch.ones(3, 256))
        model(torch.ones(3, 256))
        torch.ones(1 << 15).to("meta", torch.float16)
    assert decodings(model) == 2
    assert decodings(model) == 0
    assert transfers.bytes == 4 << 15


def test_shares_flag_only_slow_operations_that_are_no_products() -> None:
    times = {"aten::addmm": (50.0, 1), "aten::mul": (30.0, 4), "aten::copy_": (20.0, 2)}
    rows = list(shares(times | {"aten::neg": (0.5, 1)}))
    assert [row["group"] for row in rows] == ["other", "product", "other", "other"]
    assert [(row["operation"], row["flag"]) for row in rows[2:]] == [
        ("aten::mul", "yes"),
        ("aten::copy_", "yes"),
    ]


def test_profiled_command_is_the_demo(tmp_path: Path) -> None:
    request = build_request(parse(demo_command(tmp_path / "demo.mp4")))
    assert request.output == tmp_path / "demo.mp4"
    assert request.image.is_file()
    assert request.device == "cpu"
