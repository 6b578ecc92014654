"""What a file is, from the names and shapes that published files have."""

from __future__ import annotations

import pytest

from comfyui_multitalk.multitalk_core.errors import WeightsError
from comfyui_multitalk.multitalk_core.files.identify import (
    FileKind,
    Identity,
    Shapes,
    identify,
    require,
    title_of,
)
from comfyui_multitalk.multitalk_core.files.lookalikes import MARKS, Mark

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
    "adapter": (ADAPTER, FileKind.ADAPTER),
    "merged": (I2V | ADAPTER, FileKind.MERGED),
    "lora-peft": ({"blocks.0.self_attn.q.lora_A.weight": (4, 8)}, FileKind.LORA),
    "lora-kohya": ({"lora_unet_blocks_0_self_attn_q.alpha": ()}, FileKind.LORA),
    "lora-down": ({"blocks.0.ffn.0.lora_down.weight": (4, 8)}, FileKind.LORA),
    "lora-dotted": ({"transformer.blocks.0.ffn.0.lora.up.weight": (8, 4)}, FileKind.LORA),
    "lora-loha": ({"diffusion_model.blocks.0.ffn.0.hada_w1_a": (8, 4)}, FileKind.LORA),
    "lora-lokr": ({"lycoris_blocks_0_ffn_0.lokr_w1": (4, 4)}, FileKind.LORA),
    "lora-modulation": ({"blocks.0.diff_m": (1, 6, 8)}, FileKind.LORA),
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

VACE = T2V | {"vace_blocks.0.self_attn.q.weight": (5120, 5120)}
SMALL = {"blocks.0.self_attn.q.weight": (3072, 3072), "head.head.weight": (192, 3072)}
S2V = T2V | {"audio_injector.injector.0.k.weight": (5120, 5120)}
LONGCAT = {
    "blocks.0.self_attn.q.weight": (4096, 4096),
    "patch_embedding.weight": (4096, 16, 1, 2, 2),
    "blocks.0.audio_cross_attn.kv_linear.weight": (8192, 768),
}


def patched(shapes: Shapes, channels: int) -> Shapes:
    width = shapes["blocks.0.self_attn.q.weight"][0]
    return {**shapes, "patch_embedding.weight": (width, channels, 1, 2, 2)}


OTHERS: dict[str, tuple[Shapes, str]] = {
    "t2v": (T2V, "a Wan2.1 or Wan2.2 text-to-video base (T2V) (2 blocks of width 5120)"),
    "flf2v": (I2V | {"img_emb.emb_pos": (1, 514, 1280)}, "first-and-last-frame base (FLF2V)"),
    "flf2v-marked": (I2V | {"model_type.Wan2_1-FLF2V-14B-720P": (1,)}, "(FLF2V)"),
    "fun-control": (patched(I2V, 48), "a Wan2.1 Fun-Control model"),
    "fun-control-reference": (
        patched(I2V, 48) | {"ref_conv.weight": (5120, 16, 2, 2)},
        "Fun-Control model with a reference picture",
    ),
    "fun-camera": (
        patched(I2V, 32) | {"control_adapter.conv.weight": (5120, 1536, 2, 2)},
        "camera control",
    ),
    "wan22-i2v": (WAN22, "a Wan2.2 image-to-video base (A14B), which has no CLIP vision"),
    "wan22-fun-control": (patched(WAN22, 52), "a Wan2.2 Fun-Control model"),
    "wan22-5b": (patched(SMALL, 48), "a Wan2.2 5B model"),
    "wan22-5b-fun": (patched(SMALL, 100), "a Wan2.2 5B model"),
    "other-channels": (patched(I2V, 20), "a Wan model with 20 input channels"),
    "vace": (VACE, "VACE"),
    "vace-module": ({"vace_patch_embedding.weight": (5120, 96, 1, 2, 2)}, "VACE"),
    "humo": (T2V | {"audio_proj.audio_proj_glob_1.layer.weight": (512, 51200)}, "HuMo"),
    "longcat": (
        LONGCAT
        | {
            "audio_proj.proj1.weight": (512, 46080),
            "blocks.0.audio_cross_attn.q_norm.weight": (128,),
        },
        "LongCat-Avatar",
    ),
    "longcat-whisper": (LONGCAT | {"audio_proj.proj1.weight": (512, 32000)}, "LongCat-Avatar"),
    "longcat-int8": ({"blocks.0.attn.qkv.weight_int8": (1, 1)}, "int8 LongCat-Avatar"),
    "anytalker-1.3b": (
        I2V
        | {
            "blocks.0.cross_attn.k_audio.weight": (1536, 1536),
            "audio_emb.proj1.weight": (512, 46080),
        },
        "AnyTalker",
    ),
    "anytalker-14b": (
        I2V | ADAPTER | {"blocks.0.audio_cross_attn.k_face.weight": (5120, 5120)},
        "AnyTalker",
    ),
    "fantasytalking": ({"proj_model.proj.weight": (2048, 768)}, "FantasyTalking"),
    "s2v": (S2V, "Wan2.2-S2V"),
    "animate": (I2V | {"pose_patch_embedding.weight": (5120, 16, 1, 2, 2)}, "Wan2.2-Animate"),
    "animate-faces": (
        I2V | {"face_adapter.fuser_blocks.0.k_norm.weight": (128,)},
        "Wan2.2-Animate",
    ),
    "scail": (I2V | {"patch_embedding_pose.weight": (5120, 16, 1, 2, 2)}, "SCAIL"),
    "skyreels-v2-df": (T2V | {"fps_embedding.weight": (2, 5120)}, "SkyReels-V2 diffusion-forcing"),
    "torchao": ({"blocks.0.self_attn.q._weight_qdata": (5120, 5120)}, "torchao"),
    "bitsandbytes-int8": (I2V | {"blocks.0.self_attn.q.SCB": (5120,)}, "bitsandbytes"),
    "bitsandbytes-nf4": (
        I2V | {"blocks.0.self_attn.q.weight.quant_map": (16,)},
        "bitsandbytes",
    ),
    "svdquant": (
        {"blocks.0.self_attn.q.qweight": (1, 1), "blocks.0.self_attn.q.smooth_factor": (5120,)},
        "SVDQuant",
    ),
    "gptq": (
        {"blocks.0.self_attn.q.qweight": (1, 1), "blocks.0.self_attn.q.qzeros": (1, 1)},
        "GPTQ or AWQ",
    ),
    "quanto": ({"blocks.0.self_attn.q.weight._data": (5120, 5120)}, "quanto"),
    "patch-dropped": (
        {n: s for n, s in I2V.items() if n != "patch_embedding.weight"},
        "without 'patch_embedding.weight'",
    ),
    "t5": ({"encoder.block.0.layer.0.SelfAttention.q.weight": (1, 1)}, "not UMT5"),
    "whisper": ({"encoder.layers.0.fc1.weight": (5120, 1280)}, "not Wav2Vec2"),
    "wan22-vae": ({"decoder.conv1.weight": (1024, 48, 3, 3, 3)}, "the Wan2.2 5B video VAE"),
    "other-video-vae": ({"decoder.conv_in.weight": (512, 32, 3, 3, 3)}, "VAE of 32 channels"),
    "image-vae": ({"decoder.conv_in.weight": (512, 4, 3, 3)}, "image VAE"),
    "taew2_1": (
        {"encoder.0.weight": (64, 3, 3, 3), "decoder.1.weight": (256, 16, 3, 3)}
        | {"decoder.22.bias": (3,)},
        "a tiny autoencoder for previews (TAE), not the video VAE",
    ),
}


@pytest.mark.parametrize(("shapes", "kind"), KINDS.values(), ids=KINDS)
def test_identify_kind(shapes: Shapes, kind: FileKind) -> None:
    assert identify(shapes).kind is kind


@pytest.mark.parametrize(("shapes", "words"), OTHERS.values(), ids=OTHERS)
def test_identify_lookalike_is_told_apart(shapes: Shapes, words: str) -> None:
    identity = identify(shapes)
    assert identity.kind is FileKind.OTHER
    assert words in identity.description


@pytest.mark.parametrize("mark", MARKS, ids=lambda mark: mark.name)
def test_mark_alone_tells_its_lookalike(mark: Mark) -> None:
    assert identify({mark.name: (512, mark.width or 1)}) == (FileKind.OTHER, mark.description)


@pytest.mark.parametrize(
    ("config", "kind"),
    [
        ('{"transformer": {"model_type": "animate2"}}', FileKind.OTHER),
        ('{"transformer": {"model_type": "i2v"}}', FileKind.BASE_I2V),
        ('{"transformer": {"model_type": ["animate2"]}}', FileKind.BASE_I2V),
        ('{"transformer": 3}', FileKind.BASE_I2V),
        ("[1]", FileKind.BASE_I2V),
        ("{", FileKind.BASE_I2V),
        (7, FileKind.BASE_I2V),
    ],
)
def test_model_type_in_the_metadata_tells_what_tensors_do_not(
    config: object, kind: FileKind
) -> None:
    identity = identify(I2V, {"config": config})
    assert identity.kind is kind
    if kind is FileKind.OTHER:
        assert identity.description == "a Wan-Animate2 model"


def test_identify_says_the_size() -> None:
    assert "2 blocks of width 5120" in identify(I2V).description
    assert "1 blocks of width 5120" in identify(ADAPTER).description


@pytest.mark.parametrize("name", ["decoder.head.0.gamma", "decoder.norm_out.gamma"])
def test_pruned_vae_is_a_vae_by_its_own_name(name: str) -> None:
    identity = identify({"decoder.conv1.weight": (96, 16, 3, 3, 3), name: (24, 1, 1, 1)})
    assert identity.kind is FileKind.VAE
    assert identity.description.startswith("LightVAE, a Wan2.1 video VAE of a quarter")


@pytest.mark.parametrize(
    ("metadata", "title"),
    [
        ({"general.name": "Wan2.1-Fun-V1.1-14B-InP"}, "Wan2.1-Fun-V1.1-14B-InP"),
        ({"modelspec.title": " SkyReels-V3-A2V\x1b[31m\n"}, "SkyReels-V3-A2V[31m"),
        ({"general.name": "", "title": "y" * 200}, "y" * 80),
        ({"general.name": 7, "format": "pt"}, None),
        ({}, None),
    ],
)
def test_title_is_what_the_metadata_calls_the_file(
    metadata: dict[str, object], title: str | None
) -> None:
    assert title_of(metadata) == title


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
        "image-to-video base with audio layers (MultiTalk, InfiniteTalk, FlashTalk). "
        "Get wan2.1-i2v-14b-480p-Q4_K_M.gguf from city96/Wan2.1-I2V-14B-480P-gguf. "
        "Load this file as a LoRA."
    )


@pytest.mark.parametrize(("shapes", "words"), OTHERS.values(), ids=OTHERS)
def test_require_lookalike_says_what_to_get_instead(shapes: Shapes, words: str) -> None:
    with pytest.raises(WeightsError) as error:
        require(identify(shapes), FileKind.BASE_I2V, source="f.gguf", place="the base")
    said = str(error.value)
    assert said.startswith("f.gguf is ")
    assert words in said
    assert said.endswith(
        "Get wan2.1-i2v-14b-480p-Q4_K_M.gguf from city96/Wan2.1-I2V-14B-480P-gguf."
    )


def test_require_unknown_file_gives_its_first_tensor() -> None:
    with pytest.raises(
        WeightsError, match=r"its first tensor is 'a\.b'\); the VAE needs a Wan2\.1"
    ):
        require(identify({"a.b": (1,)}), FileKind.VAE, source="f", place="the VAE")
