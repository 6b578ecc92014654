"""Voices and Wav2Vec2 features equal what the official code recorded.

`scripts/parity-transformers-4.49` runs this file on the release upstream pins, in an environment of
its own.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from transformers import Wav2Vec2Config, Wav2Vec2Model

from comfyui_multitalk.dev.parity.golden import GoldenFile, Row
from comfyui_multitalk.dev.parity.wav2vec import compare, load_variant
from comfyui_multitalk.multitalk_core.inputs.features import audio_features, wav2vec2_config

GOLDEN = Path(__file__).parent / "golden" / "wav2vec_tiny.safetensors"
BF16_TOLERANCE = 0.03
"""Relative norm of the difference when weights and sound are rounded to bfloat16."""


@pytest.fixture(scope="module")
def rows() -> list[Row]:
    return compare(GOLDEN)


@pytest.mark.parametrize("group", ["loudness", "timeline", "normalized"])
def test_voices_match_upstream(rows: list[Row], group: str) -> None:
    mine = [row for row in rows if row.group.startswith(group)]
    assert mine
    assert [row for row in mine if not row.ok] == []


@pytest.mark.parametrize("variant", ["base", "stable"])
def test_audio_features_match_upstream(rows: list[Row], variant: str) -> None:
    mine = [row for row in rows if row.group.startswith(variant)]
    assert len(mine) == 5
    assert [row for row in mine if not row.ok] == []


@pytest.mark.parametrize("variant", ["base", "stable"])
def test_audio_features_in_bf16_stay_near_upstream(variant: str) -> None:
    file = GoldenFile(GOLDEN)
    model = load_variant(file, variant).bfloat16()
    features = audio_features(model, file.get("out.loudness_norm1"))
    recorded = file.get(f"{variant}.out.embedding1")
    assert features.dtype == torch.float32
    assert float((features - recorded).norm() / recorded.norm()) < BF16_TOLERANCE


@pytest.mark.parametrize("variant", ["base", "stable"])
def test_config_from_shapes_equals_the_stated_one(variant: str) -> None:
    file = GoldenFile(GOLDEN)
    stated = file.config["wav2vec_config"][variant]
    heads = stated["num_attention_heads"]
    weights = file.weights(f"{variant}.w.")
    shapes = {name: tuple(tensor.shape) for name, tensor in weights.items()}
    derived = wav2vec2_config(shapes, num_heads=heads, source="golden")
    for name in stated.keys() - {"mask_time_prob"}:  # training only
        assert getattr(derived, name) == stated[name], name


def save_golden(path: Path, tensors: dict[str, torch.Tensor], config: dict[str, object]) -> Path:
    save_file(
        {name: tensor.clone() for name, tensor in tensors.items()},
        path,
        metadata={"config": json.dumps(config)},
    )
    return path


@pytest.mark.parametrize(
    ("name", "step"),
    [
        ("out.loudness_norm2", 1e-5),
        ("out.prepare.add_3None.person2", 1e-5),
        ("stable.out.embedding2", 1e-3),
        ("base.mid.interp_features1", 1e-3),
        ("base.out.embedding_add_person2", 1e-3),
    ],
)
def test_wav2vec_with_a_changed_recording_is_reported(
    name: str, step: float, tmp_path: Path
) -> None:
    file = GoldenFile(GOLDEN)
    changed = file.get(name).clone()
    changed.flatten()[-1] += step
    path = save_golden(tmp_path / "x.safetensors", {**file.tensors, name: changed}, file.config)
    assert any(not row.ok for row in compare(path))


def test_wav2vec_of_two_voices_may_be_of_any_pair_of_that_length(tmp_path: Path) -> None:
    """The name of the recording says who is meant, not which two voices it is of."""
    file = GoldenFile(GOLDEN)
    prefix = "out.prepare.add_"
    pair = {n: t for n, t in file.tensors.items() if n.startswith(f"{prefix}23.")}
    earlier = {n.replace("_23.", "_11."): t.flip(0) for n, t in pair.items()}
    path = save_golden(tmp_path / "x.safetensors", {**file.tensors, **earlier}, file.config)
    found = {row.group: row.ok for row in compare(path)}
    assert found["base.embedding_add_person2"]
    assert not found["timeline.add_11.person1"]


def test_wav2vec_of_another_variant_is_compared_by_its_stated_config(tmp_path: Path) -> None:
    """A pairing of norms no published model has, which shapes cannot tell."""
    stated = {
        "hidden_size": 24,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "intermediate_size": 16,
        "conv_dim": [8, 8, 12],
        "conv_kernel": [10, 4, 2],
        "conv_stride": [5, 8, 8],
        "num_conv_pos_embeddings": 8,
        "num_conv_pos_embedding_groups": 2,
        "do_stable_layer_norm": True,
        "feat_extract_norm": "group",
    }
    model = Wav2Vec2Model(Wav2Vec2Config(**stated)).eval()
    track = torch.randn(8000, generator=torch.Generator().manual_seed(4))
    normalized = (track - track.mean()) / track.std(correction=0)
    with torch.no_grad():
        heard = torch.nn.functional.interpolate(
            model.feature_extractor(normalized[None]), size=12, mode="linear", align_corners=True
        )
        last = model.encoder(model.feature_projection(heard.transpose(1, 2))[0])[0]
    tensors = {f"odd.w.{name}": tensor for name, tensor in model.state_dict().items()}
    tensors["out.loudness_norm7"] = track
    tensors["in.wave7"] = track
    embedding = audio_features(model, track)
    embedding[:, -1] = last[0]
    tensors["odd.out.embedding7"] = embedding
    config = {"what": "wav2vec_tiny", "wav2vec_config": {"odd": stated}}
    rows = compare(save_golden(tmp_path / "odd.safetensors", tensors, config))
    features = [row for row in rows if row.group == "odd.embedding7"]
    assert [row.ok for row in features] == [True]
