"""Photo, masks, colours, schedule and APG equal what the official code recorded."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from comfyui_multitalk.dev.parity.golden import GoldenFile
from comfyui_multitalk.dev.parity.preprocess import compare
from comfyui_multitalk.multitalk_core.method.color import match_color_

GOLDEN = Path(__file__).parent / "golden" / "preprocess.safetensors"


def test_preprocess_matches_upstream() -> None:
    rows = compare(GOLDEN)
    assert [row for row in rows if not row.ok] == []
    groups = {row.group.split(".")[0] for row in rows}
    assert groups == {"crop", "color", "timesteps", "apg"}


@pytest.mark.parametrize("kind", ["image", "mask"])
def test_preprocess_pictures_match_upstream_exactly(kind: str) -> None:
    errors = [row.error for row in compare(GOLDEN) if row.group.endswith(f".{kind}")]
    assert errors == [0.0] * 5


@pytest.mark.parametrize(
    "name",
    [
        "crop.1.image_out_u8",
        "crop.2.mask_latent",
        "color.out.0.3",
        "timestep_transform.shift7.out",
        "apg.clip.out",
    ],
)
def test_preprocess_with_a_changed_recording_is_reported(name: str, tmp_path: Path) -> None:
    file = GoldenFile(GOLDEN)
    changed = file.get(name).clone()
    step = torch.tensor(1 if changed.dtype == torch.uint8 else 0.01, dtype=changed.dtype)
    changed.flatten()[3] += step
    path = tmp_path / "changed.safetensors"
    save_file({**file.tensors, name: changed}, path, metadata={"config": json.dumps(file.config)})
    assert sum(not row.ok for row in compare(path)) == 1


def test_preprocess_grey_frame_is_said_to_differ_and_the_others_are_held(tmp_path: Path) -> None:
    file = GoldenFile(GOLDEN)
    frames = file.get("color.in").clone()
    frames[:, :, 0] = frames[:, :1, 0]
    recorded = match_color_(frames.clone(), file.get("color.ref"), strength=1.0)
    recorded[:, :, 0] += 0.1
    path = tmp_path / "grey.safetensors"

    def failures() -> list[str]:
        tensors = {"color.in": frames, "color.ref": file.get("color.ref")}
        tensors["color.out.1.0"] = recorded
        save_file(tensors, path, metadata={"config": json.dumps(file.config)})
        rows = {row.group: row for row in compare(path)}
        assert rows["color.strength_1.0 (flat frames)"].note.startswith("differs by decision: ")
        return [group for group, row in rows.items() if not row.ok]

    assert failures() == []
    recorded[:, :, 2] += 0.001
    assert failures() == ["color.strength_1.0"]
