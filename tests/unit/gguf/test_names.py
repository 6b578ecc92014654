"""Names and shapes as converters leave them."""

from __future__ import annotations

from pathlib import Path

import pytest

from comfyui_multitalk.wan_gguf_loader.errors import GGUFError
from comfyui_multitalk.wan_gguf_loader.names import (
    check_complete,
    logical_shapes,
    model_names,
    reconcile_shape,
)


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (["model.diffusion_model.a", "model.diffusion_model.b"], ["a", "b"]),
        (["diffusion_model.a", "diffusion_model.b"], ["a", "b"]),
        (["model.a", "model.b"], ["a", "b"]),
        (["net.a", "net.b"], ["a", "b"]),
        (["model.diffusion_model.a", "vae.b"], ["a", "vae.b"]),
        (["model.a", "b"], ["model.a", "b"]),
        (["net.a", "b"], ["net.a", "b"]),
        (["a.model.b", "c"], ["a.model.b", "c"]),
        (["blocks.0.weight"], ["blocks.0.weight"]),
        (["model."], ["model."]),
        (
            ["token_embd.weight", "enc.blk.3.attn_q.weight", "enc.blk.0.ffn_gate.weight"],
            [
                "shared.weight",
                "encoder.block.3.layer.0.SelfAttention.q.weight",
                "encoder.block.0.layer.1.DenseReluDense.wi_0.weight",
            ],
        ),
        ([], []),
    ],
    ids=lambda value: "+".join(value) or "none",
)
def test_model_names(names: list[str], expected: list[str]) -> None:
    assert model_names(names) == dict(zip(names, expected, strict=True))


def test_model_names_that_meet_are_refused() -> None:
    with pytest.raises(GGUFError, match=r"'a' and 'diffusion_model\.a' are the same tensor 'a'"):
        model_names(["a", "diffusion_model.a"])


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
