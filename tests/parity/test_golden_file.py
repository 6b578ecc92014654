"""The reader of golden files and its rows."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from comfyui_multitalk.dev.parity.golden import GoldenFile, Row, require_rows, row


def _save(path: Path, tensors: dict[str, torch.Tensor], **config: object) -> Path:
    save_file(tensors, path, metadata={"config": json.dumps(config)})
    return path


def test_golden_file_small_floats_become_float32(tmp_path: Path) -> None:
    tensors = {
        "a": torch.tensor([1.5], dtype=torch.float8_e5m2),
        "b": torch.tensor([1.5], dtype=torch.float16),
        "c": torch.tensor([1.5], dtype=torch.float64),
        "d": torch.tensor([1], dtype=torch.int64),
    }
    file = GoldenFile(_save(tmp_path / "x.safetensors", tensors, what="x"))
    assert [file.get(name).dtype for name in "abcd"] == [
        torch.float32,
        torch.float32,
        torch.float64,
        torch.int64,
    ]
    assert file.get("a").item() == 1.5
    assert file.what == "x"


def test_golden_file_weights_come_from_the_file_named(tmp_path: Path) -> None:
    _save(tmp_path / "w.safetensors", {"p.q": torch.ones(1), "in.x": torch.ones(1)}, what="w")
    file = GoldenFile(
        _save(
            tmp_path / "x.safetensors",
            {"in.y": torch.ones(1)},
            what="x",
            weights_file="w.safetensors",
        )
    )
    assert list(file.weights()) == ["p.q"]
    assert list(file.weights("p.")) == ["q"]


def test_golden_file_without_config_is_refused_by_name(tmp_path: Path) -> None:
    save_file({"a": torch.ones(1)}, tmp_path / "x.safetensors")
    with pytest.raises(ValueError, match=r"x\.safetensors is not a golden file"):
        GoldenFile(tmp_path / "x.safetensors")


def test_rows_nothing_compared_is_an_error(tmp_path: Path) -> None:
    file = GoldenFile(_save(tmp_path / "x.safetensors", {"a": torch.ones(1)}, what="x"))
    with pytest.raises(ValueError, match="nothing to compare"):
        require_rows([], file)


@pytest.mark.parametrize(
    ("ours", "theirs", "ok"),
    [
        pytest.param([1.0, 2.0], [1.0, 2.05], True, id="within"),
        pytest.param([1.0, 2.0], [1.0, 2.2], False, id="beyond"),
        pytest.param([1.0, math.nan], [1.0, 2.0], False, id="ours-nan"),
        pytest.param([1.0, 2.0], [1.0, math.nan], False, id="theirs-nan"),
        pytest.param([1.0], [1.0, 1.0], False, id="other-shape"),
    ],
)
def test_row_ok_only_within_tolerance(ours: list[float], theirs: list[float], ok: bool) -> None:
    assert row("g", torch.tensor(ours), torch.tensor(theirs), tolerance=0.1).ok is ok


def test_row_difference_by_decision_is_ok_at_any_size() -> None:
    assert Row("g", 5.0, math.inf, "differs by decision: ...").ok
    assert not Row("g", math.nan, math.inf).ok
