"""Spellings of tensor names, and the prefixes before them."""

from __future__ import annotations

import re

import pytest

from comfyui_multitalk.wan_gguf_loader.errors import GGUFError
from comfyui_multitalk.wan_gguf_loader.namings import (
    Naming,
    Part,
    Share,
    Spelling,
    model_names,
    recognise,
)

QUERY = "blocks.0.self_attn.q.weight"
VAE = "decoder.conv1.weight"


def ours(names: list[str], *, part: Part | None = None) -> list[str]:
    return list(model_names(names, recognise(names, part=part)))


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        ([QUERY, "head.modulation"], [QUERY, "head.modulation"]),
        *(
            ([f"{prefix}{QUERY}", f"{prefix}b"], [QUERY, "b"])
            for prefix in ("model.diffusion_model.", "model.", "net.", "any.thing.at.all.")
        ),
        ([f"model.diffusion_model.{QUERY}", "vae.b"], [QUERY, "vae.b"]),
        ([f"vace_{QUERY}", "a"], [f"vace_{QUERY}", "a"]),
        (["diffusion_model.a.lora_A.weight", "b"], ["a.lora_A.weight", "b"]),
        (["model.a", "model.b"], ["model.a", "model.b"]),
        (
            ["multitalk_audio_proj.proj1.weight", "multitalk_audio_proj.norm.bias"],
            ["audio_proj.proj1.weight", "audio_proj.norm.bias"],
        ),
        (
            ["wav2vec2.feature_extractor.conv_layers.0.conv.weight", "quantizer.codevectors"],
            ["feature_extractor.conv_layers.0.conv.weight", "quantizer.codevectors"],
        ),
        (
            ["token_embd.weight", "enc.blk.0.attn_q.weight", "enc.blk.0.ffn_gate.weight"],
            [
                "shared.weight",
                "encoder.block.0.layer.0.SelfAttention.q.weight",
                "encoder.block.0.layer.1.DenseReluDense.wi_0.weight",
            ],
        ),
        (
            [
                "transformer.blocks.0.attn1.to_q.weight",
                "transformer.blocks.0.attn2.norm_added_k.weight",
                "transformer.blocks.0.scale_shift_table",
                "transformer.condition_embedder.image_embedder.ff.net.2.bias",
                "transformer.scale_shift_table",
                "transformer.patch_embedding.weight",
            ],
            [
                QUERY,
                "blocks.0.cross_attn.norm_k_img.weight",
                "blocks.0.modulation",
                "img_emb.proj.3.bias",
                "head.modulation",
                "patch_embedding.weight",
            ],
        ),
        (
            [
                "token_embedding.weight",
                "blocks.0.pos_embedding.embedding.weight",
                "blocks.0.attn.q.weight",
                "blocks.0.ffn.gate.0.weight",
                "norm.weight",
            ],
            [
                "shared.weight",
                "encoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight",
                "encoder.block.0.layer.0.SelfAttention.q.weight",
                "encoder.block.0.layer.1.DenseReluDense.wi_0.weight",
                "encoder.final_layer_norm.weight",
            ],
        ),
        (
            [
                "visual.ln_pre.weight",
                "visual.positional_embedding",
                "positional_embedding",
                "transformer.resblocks.0.ln_1.bias",
                "visual.transformer.resblocks.0.attn.in_proj_bias",
            ],
            [
                "vision_model.pre_layrnorm.weight",
                "vision_model.embeddings.position_embedding.weight",
                "positional_embedding",
                "transformer.resblocks.0.ln_1.bias",
                *(f"vision_model.encoder.layers.0.self_attn.{part}_proj.bias" for part in "qkv"),
            ],
        ),
        (
            ["visual.transformer.0.attn.to_qkv.weight", "visual.head", "textual.head.0.weight"],
            [
                *(f"vision_model.encoder.layers.0.self_attn.{part}_proj.weight" for part in "qkv"),
                "visual_projection",
                "textual.head.0.weight",
            ],
        ),
        (
            [
                "decoder.conv_in.weight",
                "decoder.up_blocks.1.upsamplers.0.resample.1.weight",
                "decoder.up_blocks.3.resnets.2.conv2.bias",
                "encoder.down_blocks.0.norm1.gamma",
                "encoder.mid_block.resnets.1.conv1.weight",
                "post_quant_conv.weight",
            ],
            [
                VAE,
                "decoder.upsamples.7.resample.1.weight",
                "decoder.upsamples.14.residual.6.bias",
                "encoder.downsamples.0.residual.0.gamma",
                "encoder.middle.2.residual.2.weight",
                "conv2.weight",
            ],
        ),
        ([], []),
    ],
    ids=lambda value: "+".join(value)[:60] or "none",
)
def test_names_become_the_models_own(names: list[str], expected: list[str]) -> None:
    assert ours(names) == expected


def test_wanted_part_of_a_checkpoint_loses_its_prefix() -> None:
    names = [f"model.diffusion_model.{QUERY}", f"first_stage_model.{VAE}", "other"]
    assert ours(names) == [QUERY, f"first_stage_model.{VAE}", "other"]
    assert ours(names, part="vae") == [f"model.diffusion_model.{QUERY}", VAE, "other"]
    assert ours(names, part="wav2vec2") == [QUERY, f"first_stage_model.{VAE}", "other"]


def test_shares_of_one_tensor() -> None:
    naming = Naming("x", "vae", ("qkv",), ((re.compile("^qkv$"), "q k v"),))
    shares = model_names(["p.qkv"], Spelling(naming, "p."))
    assert shares == {
        "q": Share("p.qkv", 0, 3),
        "k": Share("p.qkv", 1, 3),
        "v": Share("p.qkv", 2, 3),
    }


def test_model_under_two_prefixes_is_refused() -> None:
    with pytest.raises(GGUFError, match=r"twice, under no prefix and 'ema\.'\. Keep one"):
        recognise([QUERY, f"ema.{QUERY}"])


def test_larger_of_two_models_is_the_one() -> None:
    names = [f"controlnet.{QUERY}", "controlnet.a", QUERY, "b", "c", "d"]
    assert ours(names) == [f"controlnet.{QUERY}", "controlnet.a", QUERY, "b", "c", "d"]


def test_names_that_meet_are_refused() -> None:
    names = [f"diffusion_model.{QUERY}", "diffusion_model.a", "a"]
    with pytest.raises(GGUFError, match=r"'diffusion_model\.a' and 'a' are the same tensor 'a'"):
        ours(names)
