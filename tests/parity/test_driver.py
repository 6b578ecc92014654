"""`scripts/parity`: a line a group, and an exit status that says what happened."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from comfyui_multitalk.dev.parity.driver import describe, main
from comfyui_multitalk.dev.parity.golden import GoldenFile, Row

GOLDEN = Path(__file__).parent / "golden"
LROPE = GOLDEN / "lrope.safetensors"


def altered(path: Path, folder: Path, **config: object) -> Path:
    file = GoldenFile(path)
    copy = folder / path.name
    save_file(file.tensors, copy, metadata={"config": json.dumps(file.config | config)})
    return copy


@pytest.mark.parametrize(
    "name", ["audio_proj", "lrope", "preprocess", "dit_tiny_single", "vae_tiny", "wav2vec_tiny"]
)
def test_driver_every_kind_lies_within_tolerance(
    name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([str(GOLDEN / f"{name}.safetensors")]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines
    assert all(line.startswith(f"{name}  ") for line in lines)
    assert all(" ok" in line or "differs by decision: " in line for line in lines)


def test_driver_value_above_tolerance_ends_with_1(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = GoldenFile(LROPE)
    tensors = file.tensors | {"nas.0.out": file.get("nas.0.out") + 0.1}
    path = tmp_path / LROPE.name
    save_file(tensors, path, metadata={"config": json.dumps(file.config)})
    assert main([str(LROPE), str(path)]) == 1
    (failed,) = [line for line in capsys.readouterr().out.splitlines() if "FAILED" in line]
    assert "nas.0" in failed
    assert "1.0e-01" in failed


@pytest.mark.parametrize(
    ("content", "message"),
    [
        pytest.param(None, "No such file", id="missing"),
        pytest.param(b"<html>not found</html>", "", id="no-safetensors"),
        pytest.param(b"", "", id="empty"),
    ],
)
def test_driver_unreadable_file_ends_with_2_and_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], content: bytes | None, message: str
) -> None:
    path = tmp_path / "odd.safetensors"
    if content is not None:
        path.write_bytes(content)
    assert main([str(LROPE), str(path)]) == 2
    error = capsys.readouterr().err
    assert len(error.splitlines()) == 1
    assert error.startswith("odd.safetensors: ")
    assert message in error


def test_driver_unknown_kind_ends_with_2(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([str(altered(LROPE, tmp_path, what="recipe"))]) == 2
    assert "'recipe', which is unknown" in capsys.readouterr().err


def test_driver_file_that_is_not_golden_ends_with_2(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "plain.safetensors"
    save_file({"weight": torch.zeros(2)}, path)
    assert main([str(path)]) == 2
    assert "not a golden file" in capsys.readouterr().err


def test_driver_file_with_missing_weights_ends_with_2(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = altered(GOLDEN / "sampler_tiny.safetensors", tmp_path)
    assert main([str(path)]) == 2
    assert "dit_tiny_single.safetensors" in capsys.readouterr().err


def test_driver_nothing_compared_is_a_failure(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = GOLDEN / "sampler_tiny.safetensors"
    only = {"teacache": GoldenFile(source).config["variants"]["teacache"]}
    (tmp_path / "dit_tiny_single.safetensors").symlink_to(GOLDEN / "dit_tiny_single.safetensors")
    assert main([str(altered(source, tmp_path, variants=only))]) == 1
    captured = capsys.readouterr()
    assert "differs by decision: TeaCache comes with the speed issue" in captured.out
    assert "nothing in this file could be compared" in captured.err


def test_driver_without_files_says_how_to_call_it(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 2
    assert "usage" in capsys.readouterr().err


def test_driver_nan_is_no_success() -> None:
    assert "FAILED" in describe(Row("latents", float("nan"), 1e-4))
