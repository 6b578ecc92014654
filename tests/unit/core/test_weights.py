"""Sizes read from shapes."""

from __future__ import annotations

from dataclasses import replace

import pytest

from comfyui_multitalk.multitalk_core.config import AudioConfig, ModelConfig
from comfyui_multitalk.multitalk_core.errors import WeightsError
from comfyui_multitalk.multitalk_core.files.identify import Shapes
from comfyui_multitalk.multitalk_core.files.sizes import (
    audio_config,
    clip_sizes,
    model_config,
    shape_of,
)
from comfyui_multitalk.multitalk_core.model.dit import MultiTalkModel
from comfyui_multitalk.tests.support.transformer import CONFIG

AUDIO = replace(AudioConfig(), channels=8, hidden_dim=12, num_tokens=3, token_dim=10)
FULL = replace(CONFIG, text_len=512, audio=AUDIO)
BASE = replace(FULL, audio=None)


def _shapes(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    model = MultiTalkModel(config, device="meta")
    return {name: tuple(weight.shape) for name, weight in model.state_dict().items()}


def _adapter(shapes: Shapes) -> dict[str, tuple[int, ...]]:
    marks = ("audio_proj", "audio_cross_attn", "norm_x")
    return {name: shape for name, shape in shapes.items() if any(m in name for m in marks)}


def test_model_config_round_trip() -> None:
    assert model_config(_shapes(FULL), source="f", num_heads=3) == FULL
    assert model_config(_shapes(BASE), source="f", num_heads=3) == BASE


@pytest.mark.parametrize("norms", [(True, False), (False, True)], ids=["tokens", "visual"])
def test_audio_config_reads_which_norms_there_are(norms: tuple[bool, bool]) -> None:
    audio = AudioConfig(channels=4, norm_tokens=norms[0], norm_visual=norms[1])
    shapes = _adapter(_shapes(replace(BASE, audio=audio)))
    assert audio_config(shapes, base=BASE, source="f") == audio


def test_model_config_full_size_defaults_are_wan_14b() -> None:
    shapes = _shapes(replace(ModelConfig(), audio=AudioConfig()))
    assert model_config(shapes, source="f") == replace(ModelConfig(), audio=AudioConfig())


def test_model_config_width_without_head_count_asks_for_it() -> None:
    with pytest.raises(
        WeightsError, match=r"f\.gguf has a width of 48.*wan\.attention\.head_count"
    ):
        model_config(_shapes(BASE), source="f.gguf")


@pytest.mark.parametrize(
    "name",
    [
        "patch_embedding.weight",
        "blocks.0.ffn.0.weight",
        "blocks.0.self_attn.q.weight",
        "head.head.weight",
        "img_emb.proj.1.weight",
    ],
)
def test_model_config_missing_weight_is_named(name: str) -> None:
    shapes = _shapes(BASE)
    del shapes[name]
    with pytest.raises(WeightsError, match=f"f.gguf lacks '{name}'"):
        model_config(shapes, source="f.gguf", num_heads=3)


def test_model_config_gap_in_the_blocks_is_named() -> None:
    shapes = {n: s for n, s in _shapes(replace(BASE, num_layers=3)).items() if "blocks.1." not in n}
    with pytest.raises(WeightsError, match=r"lacks 'blocks\.1\.self_attn"):
        model_config(shapes, source="f", num_heads=3)


def test_audio_config_base_as_adapter_is_told() -> None:
    with pytest.raises(WeightsError, match=r"base\.gguf has no MultiTalk audio weights"):
        audio_config(_shapes(BASE), base=BASE, source="base.gguf")


@pytest.mark.parametrize(
    "other", [replace(BASE, dim=96), replace(BASE, num_layers=5)], ids=["width", "blocks"]
)
def test_audio_config_adapter_for_another_base_names_both(other: ModelConfig) -> None:
    adapter = _adapter(_shapes(replace(other, audio=AUDIO)))
    message = (
        rf"m\.safetensors is an adapter for {other.num_layers} blocks of width {other.dim}, "
        rf"but the base has 2 blocks of width 48"
    )
    with pytest.raises(WeightsError, match=message):
        audio_config(adapter, base=BASE, source="m.safetensors")


def test_audio_config_windows_of_another_method_are_refused() -> None:
    shapes = _adapter(_shapes(FULL)) | {"audio_proj.proj1_vf.weight": (12, 100)}
    with pytest.raises(WeightsError, match="480 and 100 numbers"):
        audio_config(shapes, base=BASE, source="f")


def test_audio_config_layers_that_do_not_divide_are_refused() -> None:
    with pytest.raises(WeightsError, match="16 numbers, which are not 12 layers"):
        audio_config(_adapter(_shapes(CONFIG)), base=BASE, source="f")


@pytest.mark.parametrize(
    ("width", "stated", "heads"),
    [(1280, None, 16), (1408, None, 16), (1664, None, 16), (1024, None, 16), (64, 4, 4)],
    ids=["ViT-H", "ViT-g", "ViT-bigG", "ViT-L", "stated"],
)
def test_clip_sizes_heads_are_those_of_the_published_towers(
    width: int, stated: int | None, heads: int
) -> None:
    """OpenCLIP's ViT-H, ViT-g and ViT-bigG have 16 heads of width 80, 88 and 104."""
    shapes = {
        "vision_model.embeddings.patch_embedding.weight": (width, 3, 14, 14),
        "vision_model.embeddings.position_embedding.weight": (257, width),
        "vision_model.encoder.layers.0.mlp.fc1.weight": (4 * width, width),
        "vision_model.encoder.layers.1.mlp.fc1.weight": (4 * width, width),
    }
    sizes = clip_sizes(shapes, num_heads=stated, source="f")
    assert (sizes.num_attention_heads, sizes.num_hidden_layers, sizes.image_size) == (heads, 2, 224)


@pytest.mark.parametrize("shape", [(), (5,), (0, 5), (5, 0), (1, 5, 5)])
def test_shape_of_another_rank_or_of_nothing_is_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(WeightsError, match=r"f: 'a\.weight' has the shape \["):
        shape_of({"a.weight": shape}, "a.weight", source="f")
