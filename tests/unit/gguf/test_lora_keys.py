"""Keys of LoRA files name layers of the transformer, in every style."""

from __future__ import annotations

import pytest

from comfyui_multitalk.wan_gguf_loader.lora_keys import LayerNames

TENSORS = [
    *("patch_embedding.weight", "head.head.weight", "head.modulation", "blocks.1.modulation"),
    *("text_embedding.0.weight", "time_embedding.2.weight", "time_projection.1.weight"),
    *(f"img_emb.proj.{i}.weight" for i in (0, 1, 3, 4)),
    *(f"blocks.1.self_attn.{x}.weight" for x in ("q", "k", "v", "o", "norm_q", "norm_k")),
    *(f"blocks.1.cross_attn.{x}.weight" for x in ("q", "k", "v", "o", "k_img", "v_img")),
    *(f"blocks.1.cross_attn.{x}.weight" for x in ("norm_q", "norm_k", "norm_k_img")),
    *("blocks.1.ffn.0.weight", "blocks.1.ffn.2.weight", "blocks.1.norm3.weight"),
]
NAMES = LayerNames(TENSORS)
DIFFUSERS = {
    "blocks.1.attn1.to_q": "blocks.1.self_attn.q",
    "blocks.1.attn1.to_out.0": "blocks.1.self_attn.o",
    "blocks.1.attn1.norm_k": "blocks.1.self_attn.norm_k",
    "blocks.1.attn2.to_k": "blocks.1.cross_attn.k",
    "blocks.1.attn2.to_out.0": "blocks.1.cross_attn.o",
    "blocks.1.attn2.add_v_proj": "blocks.1.cross_attn.v_img",
    "blocks.1.attn2.norm_added_k": "blocks.1.cross_attn.norm_k_img",
    "blocks.1.norm2": "blocks.1.norm3",
    "blocks.1.ffn.net.0.proj": "blocks.1.ffn.0",
    "blocks.1.ffn.net.2": "blocks.1.ffn.2",
    "blocks.1.scale_shift_table": "blocks.1.modulation",
    "condition_embedder.text_embedder.linear_1": "text_embedding.0",
    "condition_embedder.time_embedder.linear_2": "time_embedding.2",
    "condition_embedder.time_proj": "time_projection.1",
    "condition_embedder.image_embedder.norm1": "img_emb.proj.0",
    "condition_embedder.image_embedder.ff.net.0.proj": "img_emb.proj.1",
    "condition_embedder.image_embedder.ff.net.2": "img_emb.proj.3",
    "condition_embedder.image_embedder.norm2": "img_emb.proj.4",
    "proj_out": "head.head",
    "scale_shift_table": "head.modulation",
}


@pytest.mark.parametrize("theirs", DIFFUSERS)
@pytest.mark.parametrize("prefix", ["", "transformer.", "lora_unet_", "lycoris_"])
def test_diffusers_names_are_translated(theirs: str, prefix: str) -> None:
    stem = theirs.replace(".", "_") if prefix.endswith("_") else theirs
    place = NAMES.find(f"{prefix}{stem}.diff")
    assert (place.path, place.role) == (DIFFUSERS[theirs], "weight")


@pytest.mark.parametrize(
    "prefix",
    ["", "diffusion_model.", "model.diffusion_model.", "transformer.", "base_model.model.",
     "base_model.model.model.", "pipe.dit.", "unet.", "module.", "lora_unet_"],
)  # fmt: skip
@pytest.mark.parametrize(
    ("ending", "role"),
    [
        ("lora_A.weight", "down"), ("lora_B.weight", "up"), ("lora_A.default.weight", "down"),
        ("lora_B.my_adapter.weight", "up"), ("lora_A", "down"), ("lora_B", "up"),
        ("lora_down.weight", "down"), ("lora_up.weight", "up"), ("lora.down.weight", "down"),
        ("lora.up.weight", "up"), ("lora_linear_layer.up.weight", "up"), ("alpha", "alpha"),
        ("dora_scale", "magnitude"), ("lora_magnitude_vector", "magnitude"),
        ("lora_magnitude_vector.default.weight", "magnitude"), ("hada_w1_a", "hada_w1_a"),
        ("hada_t2", "hada_t2"), ("lokr_w1", "lokr_w1"), ("lokr_w2_b", "lokr_w2_b"),
        ("lokr_t2", "lokr_t2"), ("diff", "weight"), ("w_norm", "weight"), ("diff_b", "bias"),
        ("b_norm", "bias"), ("diff_m", "modulation"),
    ],
)  # fmt: skip
def test_endings_are_read_behind_any_prefix(prefix: str, ending: str, role: str) -> None:
    place = NAMES.find(f"{prefix}blocks.1.self_attn.q.{ending}")
    assert (place.path, place.role) == ("blocks.1.self_attn.q", role)


@pytest.mark.parametrize("prefix", ["lora_unet_", "lora_unet__", "lycoris_", "lora_transformer_"])
def test_underscores_are_read(prefix: str) -> None:
    place = NAMES.find(f"{prefix}blocks_1_cross_attn_k_img.lora_down.weight")
    assert (place.path, place.role) == ("blocks.1.cross_attn.k_img", "down")


@pytest.mark.parametrize(
    ("key", "is_ours"),
    [
        ("diffusion_model.blocks.1.self_attn.q.reshape_weight", True),
        ("blocks.1.self_attn.q.lora_B.bias", True),
        ("blocks.1.self_attn.q.weight", True),
        ("blocks.9.attn1.to_q.lora_A.weight", True),
        ("lora_unet_blocks_9_self_attn_q.oft_blocks", True),
        ("transformer.condition_embedder.other.lora_A.weight", True),
        ("text_encoder.blocks.1.self_attn.q.lora_A.weight", False),
        ("lora_te_blocks_1_self_attn_q.alpha", False),
        ("lora_unet_vace_blocks_0_self_attn_q.alpha", False),
        ("vace_patch_embedding.lora_A.weight", False),
        ("patch_embedding_pose.lora_A.weight", False),
    ],
)
def test_unread_keys_are_of_the_transformer_or_of_another_model(key: str, is_ours: bool) -> None:
    place = NAMES.find(key)
    assert place.path is None or place.role is None
    assert place.is_ours == is_ours
