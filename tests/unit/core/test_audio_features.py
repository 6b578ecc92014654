"""Wav2Vec2 from shapes, and its features; tiny random models of both kinds."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor
from transformers import Wav2Vec2Config, Wav2Vec2ForPreTraining, Wav2Vec2Model

from comfyui_multitalk.multitalk_core.errors import InputError, WeightsError
from comfyui_multitalk.multitalk_core.inputs.features import (
    FOLDED_POSITION,
    audio_features,
    conv_features,
    load_wav2vec2,
    normalized_track,
    wav2vec2_config,
)
from comfyui_multitalk.wan_gguf_loader.files import open_weights
from comfyui_multitalk.wan_gguf_loader.load import account_for

SIZES = {
    "hidden_size": 64,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "conv_dim": [16] * 6 + [24],
    "conv_kernel": [10, 3, 3, 3, 3, 2, 2],
    "conv_stride": [5, 2, 2, 2, 2, 2, 2],
    "num_conv_pos_embeddings": 16,
    "num_conv_pos_embedding_groups": 4,
}
STABLE = {"do_stable_layer_norm": True, "feat_extract_norm": "layer", "conv_bias": True}


def tiny_config(kind: str) -> Wav2Vec2Config:
    return Wav2Vec2Config(**SIZES, **(STABLE if kind == "stable" else {}))


def tiny_state(kind: str) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(3)
    state = Wav2Vec2Model(tiny_config(kind)).state_dict()
    return {
        name: torch.randn(tensor.shape, generator=generator) * 0.2 + name.endswith("norm.weight")
        for name, tensor in state.items()
    }


@pytest.fixture(params=["base", "stable"])
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def model(kind: str) -> Wav2Vec2Model:
    return load_wav2vec2(tiny_state(kind), num_heads=4, source="tiny.safetensors")


def tiny_shapes(kind: str) -> dict[str, tuple[int, ...]]:
    return {name: tuple(tensor.shape) for name, tensor in tiny_state(kind).items()}


def sound(samples: int = 16000) -> Tensor:
    return torch.randn(samples, generator=torch.Generator().manual_seed(9)) * 0.1


def test_wav2vec2_config_is_derived_from_shapes(kind: str) -> None:
    derived = wav2vec2_config(tiny_shapes(kind), num_heads=4, source="tiny").to_dict()
    stated = tiny_config(kind).to_dict()
    for name in (*SIZES, *STABLE):
        expected, ours = stated[name], derived[name]
        assert (
            list(ours) == list(expected)
            if isinstance(expected, (list, tuple))
            else (ours == expected)
        ), name


def test_wav2vec2_config_without_head_count_takes_heads_of_64() -> None:
    assert wav2vec2_config(tiny_shapes("base"), num_heads=None, source="x").num_attention_heads == 1


def test_load_wav2vec2_equals_transformers_own_loading(kind: str) -> None:
    state = tiny_state(kind)
    theirs = Wav2Vec2Model(tiny_config(kind)).eval()
    theirs.load_state_dict(state)
    ours = load_wav2vec2(state, num_heads=4, source="tiny.safetensors")
    with torch.no_grad():
        expected = theirs(sound()[None]).last_hidden_state
        assert torch.equal(ours(sound()[None]).last_hidden_state, expected)


def _released(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """As Kijai's file: prefix, weight_g and weight_v, and the parts of pretraining."""
    released = {}
    for name, tensor in state.items():
        old = name.replace("parametrizations.weight.original0", "weight_g")
        old = old.replace("parametrizations.weight.original1", "weight_v")
        released[f"wav2vec2.{old}"] = tensor
    released["quantizer.codevectors"] = torch.zeros(1, 4, 2)
    released["project_hid.weight"] = torch.zeros(2, 2)
    del released["wav2vec2.masked_spec_embed"]
    return released


def _folded(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """With the position weight as one tensor, in place of lengths and directions."""
    conv = "encoder.pos_conv_embed.conv"
    lengths, directions = (state[f"{conv}.parametrizations.weight.original{i}"] for i in (0, 1))
    others = {name: tensor for name, tensor in state.items() if "parametrizations" not in name}
    norm = directions.norm(dim=(0, 1), keepdim=True)
    return {**others, f"{conv}.weight": directions * (lengths / norm)}


@pytest.mark.parametrize(
    ("spell", "error"),
    [(dict, 0.0), (_released, 0.0), (_folded, 1e-6)],
    ids=["transformers", "released", "folded"],
)
def test_wav2vec2_in_every_spelling_is_heard_alike_and_read_whole(
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    spell: Callable[[dict[str, Tensor]], dict[str, Tensor]],
    error: float,
) -> None:
    state = tiny_state("base")
    path = tmp_path / "w.safetensors"
    save_file(spell(state), path)
    with open_weights(path) as file:
        ours = load_wav2vec2(file.weights(), num_heads=4, source="w")
        account_for(file, {*ours.state_dict(), FOLDED_POSITION})
    assert not caplog.messages
    assert ours.dtype == torch.float32
    assert not ours.training
    expected = audio_features(load_wav2vec2(state, num_heads=4, source="x"), sound())
    assert (audio_features(ours, sound()) - expected).norm() <= error * expected.norm()


def test_load_wav2vec2_takes_half_precision_and_the_parts_of_pretraining() -> None:
    state = Wav2Vec2ForPreTraining(tiny_config("base")).half().state_dict()
    named = {name.removeprefix("wav2vec2."): tensor for name, tensor in state.items()}
    model = load_wav2vec2(named, num_heads=4, source="x")
    assert len(model.encoder.layers) == 3
    assert model.dtype == torch.float32


def test_load_wav2vec2_draws_no_random_numbers() -> None:
    state = tiny_state("base")
    before = torch.random.get_rng_state()
    load_wav2vec2(state, num_heads=4, source="x")
    assert torch.equal(torch.random.get_rng_state(), before)


def test_load_wav2vec2_with_missing_weights_names_file_and_weight() -> None:
    state = tiny_state("base")
    del state["encoder.layers.1.attention.k_proj.bias"]
    with pytest.raises(
        WeightsError, match=r"w\.safetensors lacks 1 .*layers\.1\.attention\.k_proj"
    ):
        load_wav2vec2(state, num_heads=4, source="w.safetensors")


def test_load_wav2vec2_with_a_wrong_shape_names_it() -> None:
    state = tiny_state("base")
    state["encoder.layers.1.attention.k_proj.bias"] = torch.zeros(5)
    with pytest.raises(WeightsError, match=r"w\.safetensors.*k_proj\.bias.*\[5\]"):
        load_wav2vec2(state, num_heads=4, source="w.safetensors")


@pytest.mark.parametrize(
    "tensors",
    [{}, {"blocks.0.self_attn.q.weight": torch.zeros(2, 2)}, {"encoder.x": torch.zeros(1)}],
    ids=["empty", "dit", "other_encoder"],
)
def test_load_wav2vec2_of_another_file_names_what_it_lacks(tensors: dict[str, Tensor]) -> None:
    with pytest.raises(WeightsError, match=r"w\.safetensors lacks .feature_extractor"):
        load_wav2vec2(tensors, num_heads=None, source="w.safetensors")


def test_load_wav2vec2_with_an_impossible_head_count_is_refused() -> None:
    with pytest.raises(WeightsError, match="width 64 with 5 heads"):
        load_wav2vec2(tiny_state("base"), num_heads=5, source="w.safetensors")


def test_audio_features_have_one_stack_per_video_frame(model: Wav2Vec2Model) -> None:
    track = sound(16000)
    before = track.clone()
    features = audio_features(model, track)
    assert features.shape == (25, 3, 64)
    assert features.dtype == torch.float32
    assert not features.requires_grad
    assert torch.equal(track, before)
    assert audio_features(model, sound(16639)).shape[0] == 25


def test_audio_features_leave_no_hook(model: Wav2Vec2Model) -> None:
    audio_features(model, sound())
    assert all(not layer._forward_hooks for layer in model.encoder.layers)
    assert torch.equal(audio_features(model, sound()), audio_features(model, sound()))


def test_audio_features_are_resampled_before_the_encoder(model: Wav2Vec2Model) -> None:
    with torch.no_grad():
        heard = conv_features(model, normalized_track(sound()), num_frames=25)
        projected, _ = model.feature_projection(heard)
        expected = model.encoder(projected).last_hidden_state
        slow = conv_features(model, normalized_track(sound()), num_frames=None)
    assert torch.allclose(audio_features(model, sound())[:, -1], expected[0], atol=1e-6)
    assert slow.shape[1] == 49
    assert torch.allclose(heard[:, 0], slow[:, 0], atol=1e-5)  # both ends stay in place
    assert torch.allclose(heard[:, -1], slow[:, -1], atol=1e-5)


def test_audio_features_of_silence_are_finite(model: Wav2Vec2Model) -> None:
    assert bool(torch.isfinite(audio_features(model, torch.zeros(16000))).all())


def test_audio_features_do_not_change_with_level(model: Wav2Vec2Model) -> None:
    quiet, loud = audio_features(model, sound()), audio_features(model, 5 * sound())
    assert float((quiet - loud).norm() / loud.norm()) < 1e-3


def test_audio_features_tail_is_silence_that_leaves_the_normalisation_alone() -> None:
    track = sound(8000) + 0.05
    plain, tailed = normalized_track(track), normalized_track(track, tail_frames=10)
    assert torch.equal(tailed[:8000], plain)
    assert len(tailed) == 8000 + 6400
    expected = (0 - track.mean()) / track.std(correction=0)
    assert torch.allclose(tailed[8000:], expected, atol=1e-4)


def test_audio_features_tail_adds_frames(model: Wav2Vec2Model) -> None:
    assert audio_features(model, sound(), tail_frames=80).shape == (105, 3, 64)


def test_audio_features_of_less_than_a_frame_is_refused(model: Wav2Vec2Model) -> None:
    with pytest.raises(InputError, match="639 samples"):
        audio_features(model, torch.zeros(639), tail_frames=80)
