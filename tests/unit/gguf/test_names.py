"""Shapes as converters leave them."""

from __future__ import annotations

from pathlib import Path

import pytest

from comfyui_multitalk.wan_gguf_loader.errors import GGUFError
from comfyui_multitalk.wan_gguf_loader.names import (
    check_complete,
    logical_shapes,
    reconcile_shape,
)


@pytest.mark.parametrize(
    "stored",
    [(8, 36, 1, 2, 2), (8, 36, 2, 2), (288, 1, 2, 2)],
    ids=["whole", "frame_dropped", "folded"],
)
def test_logical_shapes_of_patch_embedding(stored: tuple[int, ...]) -> None:
    shapes = {"patch_embedding.weight": stored, "patch_embedding.bias": (8,)}
    assert logical_shapes(shapes)["patch_embedding.weight"] == (8, 36, 1, 2, 2)


@pytest.mark.parametrize(
    "shapes",
    [
        {"patch_embedding.weight": (289, 1, 2, 2), "patch_embedding.bias": (8,)},
        {"patch_embedding.weight": (288, 1, 2, 2)},
        {"other.weight": (288, 1, 2, 2), "patch_embedding.bias": (8,)},
        {"blocks.0.self_attn.q.weight": (6, 8)},
        {"blocks.0.modulation": (1, 6, 8)},
    ],
    ids=["not_divisible", "no_bias", "other_conv", "linear", "modulation_whole"],
)
def test_logical_shapes_leave_all_else_alone(shapes: dict[str, tuple[int, ...]]) -> None:
    assert logical_shapes(shapes) == shapes


@pytest.mark.parametrize("name", ["blocks.3.modulation", "head.modulation", "img_emb.emb_pos"])
def test_logical_shapes_restore_the_leading_one(name: str) -> None:
    assert logical_shapes({name: (6, 8)}) == {name: (1, 6, 8)}


def test_logical_shapes_drop_leading_ones_of_wans_clip() -> None:
    one, all_ = "vision_model.embeddings.class_embedding", "position_embedding.weight"
    all_ = f"vision_model.embeddings.{all_}"
    assert logical_shapes({one: (1, 1, 64), all_: (1, 257, 64)}) == {one: (64,), all_: (257, 64)}
    assert logical_shapes({one: (64,), all_: (1, 64)}) == {one: (64,), all_: (1, 64)}


def test_check_complete_names_the_fix_that_was_skipped() -> None:
    with pytest.raises(GGUFError, match=r"^wan\.gguf: 'patch_embedding\.weight' .*fix_5d_tensors"):
        check_complete(["patch_embedding.bias"], path=Path("wan.gguf"))
    check_complete(["patch_embedding.bias", "patch_embedding.weight"], path=Path("wan.gguf"))
    check_complete(["audio_proj.proj1.weight"], path=Path("adapter.gguf"))


@pytest.mark.parametrize(
    ("have", "want"),
    [
        ((4, 8), (4, 8)),
        ((6, 8), (1, 6, 8)),
        ((1, 6, 8), (6, 8)),
        ((4, 8, 1), (4, 8)),
        ((288, 1, 2, 2), (8, 36, 1, 2, 2)),
        ((8, 36, 2, 2), (8, 36, 1, 2, 2)),
        ((1,), ()),
    ],
)
def test_reconcile_shape_accepts_ones_and_the_fold(
    have: tuple[int, ...], want: tuple[int, ...]
) -> None:
    assert reconcile_shape(have, want, name="w") == want


@pytest.mark.parametrize(
    ("have", "want"),
    [
        ((8, 4), (4, 8)),
        ((32,), (4, 8)),
        ((2, 16), (4, 8)),
        ((4, 9), (4, 8)),
        ((288, 2, 2, 1), (8, 36, 1, 2, 2)),
        ((12, 2), (3, 4, 2)),
    ],
)
def test_reconcile_shape_refuses_all_else(have: tuple[int, ...], want: tuple[int, ...]) -> None:
    with pytest.raises(GGUFError) as caught:
        reconcile_shape(have, want, name="w", path=Path("x.gguf"))
    message = str(caught.value)
    assert message.startswith("x.gguf: tensor 'w' has shape")
    assert str(list(have)) in message
    assert str(list(want)) in message
