"""The audio projection against recorded upstream values."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from comfyui_multitalk.dev.parity.audio_proj import compare, load_projection
from comfyui_multitalk.dev.parity.golden import GoldenFile

GOLDEN = Path(__file__).parent / "golden" / "audio_proj.safetensors"


def test_audio_projection_matches_upstream() -> None:
    rows = compare(GOLDEN)
    assert [r for r in rows if not r.ok] == []
    assert {r.group for r in rows} == {
        f"{case}.{name}"
        for case in "abc"
        for name in ("first", "latter", "out", "embedding_for_blocks")
    }


@pytest.mark.parametrize("name", ["a.latter", "b.out", "c.first", "a.embedding_for_blocks"])
def test_audio_projection_compare_sees_a_changed_value(tmp_path: Path, name: str) -> None:
    file = GoldenFile(GOLDEN)
    tensors = file.tensors | {name: file.get(name) + 1e-3}
    path = tmp_path / "changed.safetensors"
    save_file(tensors, path, metadata={"config": json.dumps(file.config)})
    assert {r.group for r in compare(path) if not r.ok} == {name}


def test_audio_projection_bfloat16_stays_within_two_percent() -> None:
    """Measured: 0.6 % of the norm; the tolerance is 2 %."""
    file = GoldenFile(GOLDEN)
    for case in "abc":
        with torch.no_grad():
            tokens = load_projection(file, case)(file.get(f"{case}.audio").bfloat16())
        theirs = file.get(f"{case}.out")
        assert tokens.dtype == torch.bfloat16
        assert (tokens.float() - theirs).norm() / theirs.norm() < 0.02
