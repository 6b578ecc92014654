"""The recipe against recorded runs of upstream's `generate` and `generate_infinitetalk`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from comfyui_multitalk.dev.parity.dit import load_model
from comfyui_multitalk.dev.parity.golden import GoldenFile
from comfyui_multitalk.dev.parity.sampler import compare, compare_variant, upstream_masks
from comfyui_multitalk.dev.parity.sampler_run import Variant, run
from comfyui_multitalk.tests.support.sampler_file import save_sampler_file

GOLDEN = Path(__file__).parent / "golden"
MULTITALK = GOLDEN / "sampler_tiny.safetensors"
INFINITETALK = GOLDEN / "infinitetalk_sampler_tiny.safetensors"

EVERY_GROUP = {
    "CLIP input",
    "VAE input",
    "VAE input frames",
    "condition",
    "latents",
    "masks",
    "noise",
    "passes",
    "pred_cond",
    "timesteps",
    "video",
    "window shape",
    "windows",
}


@pytest.mark.parametrize("path", [MULTITALK, INFINITETALK], ids=["multitalk", "infinitetalk"])
def test_generate_matches_upstream_at_every_step(path: Path) -> None:
    rows = compare(path)
    assert [row for row in rows if not row.ok] == []
    compared = {row.group for row in rows if row.tolerance < 1}
    for name, settings in GoldenFile(path).config["variants"].items():
        found = {group.split(": ")[1] for group in compared if group.startswith(f"{name}: ")}
        assert settings.get("teacache") or found >= EVERY_GROUP, name


def test_compare_teacache_waits_by_decision() -> None:
    file = GoldenFile(MULTITALK)
    (row,) = compare_variant(Variant(file, "teacache"), load_model(file))
    assert row.note == "differs by decision: TeaCache comes with the speed issue"


def test_compare_says_which_departures_are_decisions(tmp_path: Path) -> None:
    boxes = [[0, 0, 40, 25], [0, 10, 40, 40]]
    path = save_sampler_file(tmp_path, audio=[14, 14], humans=2, bbox=boxes)
    notes = {row.group: row.note for row in compare(path) if row.note}
    assert set(notes) == {"v: own masks", "v: length", "v: heads"}
    assert "later speaker wins" in notes["v: own masks"]
    assert "14 frames, as long as the sound, upstream gives 11" in notes["v: length"]


def test_compare_odd_heads_all_averaged_is_not_upstream(tmp_path: Path) -> None:
    path = save_sampler_file(tmp_path, audio=[14, 14], humans=2, own_maps=True)
    assert "v: latents" in {row.group for row in compare(path) if not row.ok}


def test_compare_picture_without_background_is_upstreams_and_said(tmp_path: Path) -> None:
    boxes = [[0, 0, 40, 30], [0, 30, 40, 60]]
    rows = compare(save_sampler_file(tmp_path, audio=[14, 14], humans=2, bbox=boxes))
    assert [row for row in rows if not row.ok] == []
    assert "v: no background" in {row.group for row in rows if row.note}


@pytest.mark.parametrize(
    ("path", "name", "tolerance"),
    [
        pytest.param(MULTITALK, "color", 0.03, id="multitalk"),
        pytest.param(INFINITETALK, "two_default", 0.12, id="infinitetalk-two-speakers"),
    ],
)
def test_generate_in_bfloat16_stays_near_upstream(path: Path, name: str, tolerance: float) -> None:
    """Relative norm of the clean latents; measured 1.7 % and 7.2 % (labels flip)."""
    file = GoldenFile(path)
    variant = Variant(file, name)
    seen = run(
        variant,
        load_model(file).bfloat16(),
        masks=upstream_masks(variant),
        dtype=torch.bfloat16,
    )
    for number, chunk in enumerate(seen.chunks):
        theirs = file.get(f"v.{name}.chunk{number}.latents")[-1]
        assert chunk.final_latents is not None
        assert (chunk.final_latents - theirs).norm() / theirs.norm() < tolerance


OTHER_FILES: dict[str, dict[str, Any]] = {
    "three-segments": {"audio": [20], "steps": 3},
    "infinitetalk-three-segments": {"which": "infinitetalk", "audio": [20], "humans": 1},
    "two-speakers-odd-heads": {"humans": 2, "audio": [11, 16]},
    "boxes": {"humans": 2, "audio": [14, 14], "bbox": [[0, 0, 40, 20], [0, 25, 40, 60]]},
    "one-step": {"audio": [14], "steps": 1},
    "audio-guidance-of-one": {"audio": [14], "audio_guidance": 1.0},
    "apg": {"audio": [14], "apg": True, "apg_norm_threshold": 3.0, "apg_momentum": -0.5},
    "single-segment": {"audio": [20], "max_frames_num": 7},
}


@pytest.mark.parametrize("settings", OTHER_FILES.values(), ids=OTHER_FILES.keys())
def test_compare_takes_other_sizes_and_variants(tmp_path: Path, settings: dict[str, Any]) -> None:
    rows = compare(save_sampler_file(tmp_path, **settings))
    assert [row for row in rows if not row.ok] == []
    assert {"v: latents", "v: noise", "v: windows"} <= {row.group for row in rows}


@pytest.mark.parametrize(
    ("name", "failing"),
    [
        ("v.v.chunk1.latents", {"v: latents"}),
        ("v.v.chunk1.noise", {"v: noise"}),
        ("v.v.chunk0.timesteps", {"v: timesteps"}),
        ("v.v.chunk1.audio_window_mean_cond", {"v: windows"}),
        ("v.v.video", {"v: video"}),
    ],
)
def test_compare_sees_a_changed_value(tmp_path: Path, name: str, failing: set[str]) -> None:
    path = save_sampler_file(tmp_path, audio=[14])
    file = GoldenFile(path)
    tensors = file.tensors | {name: file.get(name) + 2e-3}
    save_file(tensors, path, metadata={"config": json.dumps(file.config)})
    assert {row.group for row in compare(path) if not row.ok} == failing


def test_compare_recorded_nan_is_a_departure(tmp_path: Path) -> None:
    path = save_sampler_file(tmp_path, audio=[14])
    file = GoldenFile(path)
    name = "v.v.chunk1.latents"
    tensors = file.tensors | {name: torch.full_like(file.get(name), float("nan"))}
    save_file(tensors, path, metadata={"config": json.dumps(file.config)})
    notes = {row.group: row.note for row in compare(path)}
    assert notes["v: latents"] == "differs by decision: upstream gives NaN"


def test_compare_variant_without_recordings_is_an_error(tmp_path: Path) -> None:
    path = save_sampler_file(tmp_path, audio=[14])
    file = GoldenFile(path)
    config = file.config | {"variants": {"other": file.config["variants"]["v"]}}
    save_file(file.tensors, path, metadata={"config": json.dumps(config)})
    with pytest.raises(ValueError, match="records nothing of variant 'other'"):
        compare(path)
