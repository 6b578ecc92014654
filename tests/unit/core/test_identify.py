"""What a file is, from the names and shapes that published files have."""

from __future__ import annotations

import pytest

from comfyui_multitalk.multitalk_core.errors import WeightsError
from comfyui_multitalk.multitalk_core.files.identify import (
    FileKind,
    Identity,
    Shapes,
    has_fp8_scales,
    identify,
    require,
)

T2V = {
    "patch_embedding.weight": (5120, 16, 1, 2, 2),
    "blocks.0.self_attn.q.weight": (5120, 5120),
    "blocks.1.self_attn.q.weight": (5120, 5120),
    "head.head.weight": (64, 5120),
}
I2V = T2V | {"patch_embedding.weight": (5120, 36, 1, 2, 2), "img_emb.proj.1.weight": (1280, 1280)}
WAN22 = {name: shape for name, shape in I2V.items() if not name.startswith("img_emb")}
ADAPTER = {
    "audio_proj.proj1.weight": (512, 46080),
    "blocks.0.audio_cross_attn.kv_linear.weight": (10240, 768),
    "blocks.0.norm_x.weight": (5120,),
}
VAE = {"encoder.conv1.weight": (96, 3, 3, 3, 3), "decoder.conv1.weight": (384, 16, 3, 3, 3)}

KINDS: dict[str, tuple[Shapes, FileKind]] = {
    "i2v": (I2V, FileKind.BASE_I2V),
    "t2v": (T2V, FileKind.BASE_T2V),
    "flf2v": (I2V | {"img_emb.emb_pos": (1, 514, 1280)}, FileKind.BASE_FLF2V),
    "adapter": (ADAPTER, FileKind.ADAPTER),
    "merged": (I2V | ADAPTER, FileKind.MERGED),
    "lora-peft": ({"blocks.0.self_attn.q.lora_A.weight": (4, 8)}, FileKind.LORA),
    "lora-kohya": ({"lora_unet_blocks_0_self_attn_q.alpha": ()}, FileKind.LORA),
    "lora-down": ({"blocks.0.ffn.0.lora_down.weight": (4, 8)}, FileKind.LORA),
    "lora-dotted": ({"transformer.blocks.0.ffn.0.lora.up.weight": (8, 4)}, FileKind.LORA),
    "lora-loha": ({"diffusion_model.blocks.0.ffn.0.hada_w1_a": (8, 4)}, FileKind.LORA),
    "lora-lokr": ({"lycoris_blocks_0_ffn_0.lokr_w1": (4, 4)}, FileKind.LORA),
    "lora-diff": ({"blocks.0.norm3.diff": (8,)}, FileKind.LORA),
    "vae": (VAE, FileKind.VAE),
    "vae-diffusers": ({"decoder.conv_in.weight": (384, 16, 3, 3, 3)}, FileKind.VAE),
    "umt5": (
        {"encoder.block.1.layer.0.SelfAttention.relative_attention_bias.weight": (32, 64)},
        FileKind.UMT5,
    ),
    "umt5-scaled": (
        {
            "encoder.block.1.layer.0.SelfAttention.relative_attention_bias.weight": (32, 64),
            "scaled_fp8": (0,),
        },
        FileKind.UMT5,
    ),
    "clip": (
        {"vision_model.encoder.layers.0.self_attn.q_proj.weight": (1280, 1280)},
        FileKind.CLIP_VISION,
    ),
    "wav2vec2": ({"feature_extractor.conv_layers.0.conv.weight": (512, 1, 10)}, FileKind.WAV2VEC2),
    "wav2vec2-pretraining": (
        {
            "quantizer.codevectors": (1, 640, 128),
            "wav2vec2.feature_extractor.conv_layers.0.conv.weight": (512, 1, 10),
        },
        FileKind.WAV2VEC2,
    ),
    "unknown": ({"a.b": (1,)}, FileKind.UNKNOWN),
    "empty": ({}, FileKind.UNKNOWN),
}

OTHERS: dict[str, tuple[Shapes, str]] = {
    "wan22-i2v": (WAN22, "Wan2.2"),
    "wan22-5b": (I2V | {"patch_embedding.weight": (3072, 48, 1, 2, 2)}, "48 input channels"),
    "vace": (T2V | {"vace_blocks.0.self_attn.q.weight": (5120, 5120)}, "VACE"),
    "humo": (T2V | {"audio_proj.audio_proj_glob_1.layer.weight": (512, 1)}, "HuMo"),
    "longcat": (
        {"multitalk_audio_proj.proj1.weight": (512, 32000), **ADAPTER},
        "LongCat-Avatar",
    ),
    "longcat-norms": (ADAPTER | {"blocks.0.audio_cross_attn.q_norm.weight": (128,)}, "LongCat"),
    "longcat-int8": ({"blocks.0.attn.qkv.weight_int8": (1, 1)}, "int8"),
    "fantasytalking": ({"proj_model.proj.weight": (2048, 768)}, "FantasyTalking"),
    "s2v": (T2V | {"audio_injector.injector.0.k.weight": (5120, 5120)}, "S2V"),
    "quanto": ({"blocks.0.self_attn.q.weight._data": (5120, 5120)}, "quanto"),
    "fp8-scaled": (I2V | {"blocks.0.self_attn.q.scale_weight": (1,)}, "scaled FP8"),
    "fp8-scaled-new": (I2V | {"blocks.0.self_attn.q.weight_scale": (1,)}, "scaled FP8"),
    "fp8-scaled-adapter": (ADAPTER | {"scaled_fp8": (0,)}, "scaled FP8"),
    "patch-dropped": (
        {n: s for n, s in I2V.items() if n != "patch_embedding.weight"},
        "without 'patch_embedding.weight'",
    ),
    "diffusers": ({"blocks.0.attn1.to_q.weight": (5120, 5120)}, "diffusers"),
    "umt5-original": ({"blocks.0.pos_embedding.embedding.weight": (32, 64)}, "original key names"),
    "t5": ({"encoder.block.0.layer.0.SelfAttention.q.weight": (1, 1)}, "not UMT5"),
    "wan22-vae": ({"decoder.conv1.weight": (1024, 48, 3, 3, 3)}, "48 channels"),
    "image-vae": ({"decoder.conv_in.weight": (512, 4, 3, 3)}, "image VAE"),
}


@pytest.mark.parametrize(("shapes", "kind"), KINDS.values(), ids=KINDS)
def test_identify_kind(shapes: Shapes, kind: FileKind) -> None:
    assert identify(shapes).kind is kind


@pytest.mark.parametrize(("shapes", "words"), OTHERS.values(), ids=OTHERS)
def test_identify_lookalike_is_told_apart(shapes: Shapes, words: str) -> None:
    identity = identify(shapes)
    assert identity.kind is FileKind.OTHER
    assert words in identity.description


def test_identify_says_the_size() -> None:
    assert "2 blocks of width 5120" in identify(I2V).description
    assert "1 blocks of width 5120" in identify(ADAPTER).description


def test_has_fp8_scales() -> None:
    assert has_fp8_scales({"scaled_fp8": (0,)})
    assert not has_fp8_scales(I2V)


def test_require_wanted_kind_passes() -> None:
    require(identify(I2V), FileKind.BASE_I2V, source="f", place="the base")
    require(identify(I2V), (FileKind.MERGED, FileKind.BASE_I2V), source="f", place="the base")


def test_require_wrong_kind_says_what_it_is_what_is_needed_and_what_to_do() -> None:
    lora = Identity(FileKind.LORA, "a LoRA")
    with pytest.raises(WeightsError) as error:
        require(
            lora, (FileKind.BASE_I2V, FileKind.MERGED), source="x.safetensors", place="the base"
        )
    assert str(error.value) == (
        "x.safetensors is a LoRA; the base needs a Wan2.1 image-to-video base or a Wan2.1 "
        "image-to-video base with a MultiTalk or InfiniteTalk adapter merged in. "
        "Get wan2.1-i2v-14b-480p-Q4_K_M.gguf from city96/Wan2.1-I2V-14B-480P-gguf. "
        "Load this file as a LoRA."
    )


def test_require_unknown_file_gives_its_first_tensor() -> None:
    with pytest.raises(
        WeightsError, match=r"its first tensor is 'a\.b'\); the VAE needs a Wan2\.1"
    ):
        require(identify({"a.b": (1,)}), FileKind.VAE, source="f", place="the VAE")
