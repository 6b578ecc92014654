"""Rotary positions, reference map and audio attention against recorded upstream values."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from comfyui_multitalk.dev.parity.golden import GoldenFile
from comfyui_multitalk.dev.parity.lrope import compare

GOLDEN = Path(__file__).parent / "golden" / "lrope.safetensors"


def _changed(
    tmp_path: Path, change: Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]]
) -> Path:
    file = GoldenFile(GOLDEN)
    path = tmp_path / "changed.safetensors"
    save_file(change(file.tensors), path, metadata={"config": json.dumps(file.config)})
    return path


def test_lrope_matches_upstream() -> None:
    rows = compare(GOLDEN)
    assert [r for r in rows if not r.ok] == []
    compared = {r.group for r in rows}
    recorded = {n for n in GoldenFile(GOLDEN).tensors if n.endswith((".out", "_out", "_pos"))}
    maps = {n.removesuffix(".out") if n.startswith("attnmap") else n for n in recorded}
    assert maps - {"lrope"} <= compared
    assert {"sinus.out256", "mattn.out_two", "mattn.out_single", "attnmap.h4"} <= compared


def test_lrope_odd_heads_upstream_is_checked_and_the_departure_said() -> None:
    rows = {r.group: r for r in compare(GOLDEN)}
    assert rows["attnmap.h5_odd"].error <= 1e-7
    assert rows["attnmap.h5_odd (all heads)"].note.startswith("differs by decision: ")
    assert rows["attnmap.h5_odd (all heads)"].error > 1e-3


@pytest.mark.parametrize(
    "name",
    [
        "sinus.out256",
        "rope3d.48.out",
        "rope3d.24.freqs_im_1000",
        "rope1d.32.out",
        "nas.1.out",
        "mattn.q_pos",
        "mattn.k_out",
        "mattn.out_two",
        "mattn.out_single",
        "attnmap.h4.out",
        "attnmap.h5_odd.out",
    ],
)
def test_lrope_compare_sees_a_changed_value(tmp_path: Path, name: str) -> None:
    path = _changed(tmp_path, lambda tensors: tensors | {name: tensors[name] + 1e-3})
    assert {r.group for r in compare(path) if not r.ok} == {
        name.removesuffix(".out") if name.startswith("attnmap") else name
    }


def test_lrope_compare_skips_absent_groups(tmp_path: Path) -> None:
    path = _changed(
        tmp_path, lambda tensors: {n: t for n, t in tensors.items() if n.startswith("rope1d.32")}
    )
    assert [r.group for r in compare(path)] == ["rope1d.32.out"]
