"""The transformer against recorded upstream runs, one speaker and two."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor
from torch._dynamo.testing import CompileCounterWithBackend

from comfyui_multitalk.dev.parity.dit import (
    TOLERANCE,
    compare,
    load_model,
    record,
    token_masks,
)
from comfyui_multitalk.dev.parity.golden import GoldenFile, largest_error
from comfyui_multitalk.multitalk_core.config import ModelConfig
from comfyui_multitalk.multitalk_core.model.audio_tokens import AudioContext
from comfyui_multitalk.tests.support.transformer import AUDIO, CONFIG, small_inputs, small_model

GOLDEN = Path(__file__).parent / "golden"
FILES = ["dit_tiny_single.safetensors", "dit_tiny_two_speakers.safetensors"]


@pytest.mark.parametrize("name", FILES)
def test_dit_matches_upstream_fp32(name: str) -> None:
    rows = compare(GOLDEN / name)
    assert [r for r in rows if not r.ok] == []
    recorded = GoldenFile(GOLDEN / name).tensors
    assert {r.group for r in rows} == {n for n in recorded if n.startswith(("mid.", "out."))}


@pytest.mark.parametrize(
    ("name", "dtype", "tolerance"),
    [
        pytest.param(FILES[0], torch.bfloat16, 0.01, id="single-bf16"),
        pytest.param(FILES[1], torch.bfloat16, 0.02, id="two-bf16"),
        pytest.param(FILES[0], torch.float16, 0.002, id="single-fp16"),
        pytest.param(FILES[1], torch.float16, 0.02, id="two-fp16"),
    ],
)
def test_dit_half_precision_stays_near_upstream(
    name: str, dtype: torch.dtype, tolerance: float
) -> None:
    """Relative norm of the output; measured 0.6 %, 1.2 %, 0.07 %, 1.2 %; with two, labels flip."""
    file = GoldenFile(GOLDEN / name)
    velocity = record(load_model(file), file, upstream=True, dtype=dtype)["out.x"]
    theirs = file.get("out.x")
    assert velocity.dtype == dtype
    assert (velocity.float() - theirs).norm() / theirs.norm() < tolerance


@torch.no_grad()
@pytest.mark.filterwarnings("ignore::DeprecationWarning:torch")
@pytest.mark.parametrize(
    ("backend", "dtype"),
    [("inductor", torch.float32), ("aot_eager", torch.bfloat16)],
    ids=["float32", "bfloat16"],
)
def test_compiled_blocks_match_upstream_and_are_compiled_once(
    backend: str, dtype: torch.dtype
) -> None:
    """One graph for all blocks, noises, steps, strengths and segments."""
    torch._dynamo.reset()
    file = GoldenFile(GOLDEN / FILES[1])
    model = load_model(file)
    compiler = CompileCounterWithBackend(backend)
    for block in model.blocks:
        block.compile(backend=compiler, fullgraph=True, dynamic=False)
    latents, time, windows = file.get("in.x").unsqueeze(0), file.get("in.t"), file.get("in.audio")
    latents, windows = latents.to(dtype), windows.to(dtype)

    def predict(
        latents: Tensor, time: Tensor, windows: Tensor, audio_strength: float = 1.0
    ) -> Tensor:
        velocity: Tensor = model(
            latents,
            time,
            condition=file.get("in.y"),
            text=file.get("in.context").unsqueeze(0),
            image=file.get("in.clip_fea"),
            audio=AudioContext(
                model.project_audio(windows),
                token_masks(file.get("in.ref_target_masks")),
                audio_strength,
            ),
        )
        return velocity.float()

    theirs = file.get("out.x")
    ours = predict(latents, time, windows)
    if dtype == torch.float32:
        assert largest_error(ours, theirs) < TOLERANCE
    assert (ours - theirs).norm() / theirs.norm() < 0.02
    changed = predict(latents.flip(2), time / 2, windows.flip(1), 0.5)
    assert not torch.allclose(changed, ours)
    assert not torch.allclose(predict(latents.flip(2), time / 2, windows.flip(1), 0.7), changed)
    assert compiler.frame_count == 1


def _save_run(
    tmp_path: Path,
    config: ModelConfig,
    *,
    speakers: int,
    upstream: bool = True,
    background: bool = True,
) -> Path:
    """Record a run of our own model of other sizes as a golden file in two parts."""
    model, inputs = small_model(config), small_inputs(speakers=speakers)
    sizes = asdict(config) | {
        "in_dim": config.in_channels,
        "out_dim": config.out_channels,
        "intermediate_dim": AUDIO.hidden_dim,
        "output_dim": AUDIO.token_dim,
        "context_tokens": AUDIO.num_tokens,
        "norm_output_audio": True,
        "norm_input_visual": True,
    }
    meta = {"what": "dit_other", "model": sizes, "weights_file": "w.safetensors"}
    metadata = {"config": json.dumps(meta)}
    save_file(model.state_dict(), tmp_path / "w.safetensors", metadata=metadata)
    masks = inputs.token_masks.view(3, 2, 3).float()
    if not background:
        masks = torch.stack((masks[0] + masks[2], masks[1], torch.zeros_like(masks[2])))
    recorded = {
        "in.x": inputs.latents[0],
        "in.y": inputs.condition,
        "in.t": inputs.timestep,
        "in.context": inputs.text[0],
        "in.clip_fea": inputs.image,
        "in.audio": inputs.windows,
        "in.ref_target_masks": masks.repeat_interleave(2, 1).repeat_interleave(2, 2),
    }
    path = tmp_path / "run.safetensors"
    save_file(recorded, path, metadata=metadata)
    values = record(model, GoldenFile(path), upstream=upstream)
    names = ["out.x", "mid.blocks.1.out", "mid.blocks.0.x_ref_attn_map", "mid.text_embedding"]
    recorded |= {name: values[name].contiguous() for name in names}
    save_file(recorded, path, metadata=metadata)
    return path


@pytest.mark.parametrize("speakers", [1, 2])
def test_dit_compare_takes_other_sizes(tmp_path: Path, speakers: int) -> None:
    config = replace(CONFIG, num_heads=2)
    rows = compare(_save_run(tmp_path, config, speakers=speakers))
    assert len(rows) == 4
    assert [r for r in rows if not r.ok or r.note] == []


def test_dit_compare_odd_heads_upstream_is_checked_and_the_departure_said(tmp_path: Path) -> None:
    rows = compare(_save_run(tmp_path, CONFIG, speakers=2))
    assert [r for r in rows if not r.ok] == []
    departures = {r.group: r for r in rows if r.note}
    assert set(departures) == {"out.x (all heads)", "mid.blocks.0.x_ref_attn_map (all heads)"}
    assert all(r.note.startswith("differs by decision: ") for r in departures.values())
    assert departures["out.x (all heads)"].error > 1e-4


def test_dit_compare_odd_heads_all_averaged_is_not_upstream(tmp_path: Path) -> None:
    rows = compare(_save_run(tmp_path, CONFIG, speakers=2, upstream=False))
    assert "out.x" in {r.group for r in rows if not r.ok}


def test_dit_compare_region_without_tokens_upstream_is_checked_and_the_departure_said(
    tmp_path: Path,
) -> None:
    config = replace(CONFIG, num_heads=2)
    path = _save_run(tmp_path, config, speakers=2, background=False)
    rows = {r.group: r for r in compare(path)}
    assert [r for r in rows.values() if not r.ok] == []
    assert rows["out.x"].tolerance < 1e-3
    assert rows["out.x (empty region)"].error > 1e-4
    assert rows["out.x (empty region)"].note.startswith("differs by decision: ")


@pytest.mark.parametrize("name", ["out.x", "mid.blocks.1.out", "mid.blocks.0.lrope.q_pos"])
def test_dit_compare_sees_a_changed_value(tmp_path: Path, name: str) -> None:
    file = GoldenFile(GOLDEN / FILES[1])
    tensors = file.tensors | {name: file.get(name) + 1e-4}
    (tmp_path / FILES[0]).symlink_to(GOLDEN / FILES[0])
    save_file(tensors, tmp_path / FILES[1], metadata={"config": json.dumps(file.config)})
    assert {r.group for r in compare(tmp_path / FILES[1]) if not r.ok} == {name}
