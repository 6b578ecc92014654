"""Files that are taken for ours: their real names and shapes, without values."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import torch

from .files import Refused, Variant, Written

Shapes = Mapping[str, tuple[int, ...]]

_WIDTH = 5120
_QUERY = "blocks.0.self_attn.q.weight"


def _wan(channels: int, *, width: int = _WIDTH, sees: bool = True) -> dict[str, tuple[int, ...]]:
    """Give the tensors that every Wan has."""
    shapes: dict[str, tuple[int, ...]] = {
        "patch_embedding.weight": (width, channels, 1, 2, 2),
        "patch_embedding.bias": (width,),
        _QUERY: (width, width),
        "blocks.1.self_attn.q.weight": (width, width),
        "head.head.weight": (64, width),
        "head.modulation": (1, 2, width),
        "text_embedding.0.weight": (width, 4096),
    }
    if sees:
        shapes["img_emb.proj.1.weight"] = (1280, 1280)
        shapes["blocks.0.cross_attn.k_img.weight"] = (width, width)
    return shapes


_ADAPTER: Shapes = {
    "audio_proj.proj1.weight": (512, 46080),
    "audio_proj.proj1_vf.weight": (512, 73728),
    "blocks.0.audio_cross_attn.kv_linear.weight": (10240, 768),
    "blocks.0.audio_cross_attn.q_linear.weight": (_WIDTH, _WIDTH),
    "blocks.0.norm_x.weight": (_WIDTH,),
}
_T2V, _I2V = _wan(16, sees=False), _wan(36)

BASES: Mapping[str, tuple[Shapes, str]] = {
    "Wan2.1 T2V 14B": (_T2V, "T2V"),
    "Wan2.1 T2V 1.3B": (_wan(16, width=1536, sees=False), "T2V"),
    "Wan2.1 FLF2V 14B": ({**_I2V, "img_emb.emb_pos": (1, 514, 1280)}, "FLF2V"),
    "Wan2.1 VACE 14B": (
        {**_T2V, "vace_blocks.0.self_attn.q.weight": (_WIDTH, _WIDTH),
         "vace_patch_embedding.weight": (_WIDTH, 96, 1, 2, 2)}, "VACE"),
    "VACE module (Kijai)": ({"vace_blocks.0.self_attn.q.weight": (_WIDTH, _WIDTH),
                             "vace_patch_embedding.weight": (_WIDTH, 96, 1, 2, 2)}, "VACE"),
    "Wan2.1 Fun-Control 14B": (_wan(48), "Fun-Control"),
    "Wan2.1 Fun-Control 14B with a reference": (
        {**_wan(48), "ref_conv.weight": (_WIDTH, 16, 2, 2)}, "Fun-Control"),
    "Wan2.1 Fun-Camera 14B": (
        {**_wan(32), "control_adapter.conv.weight": (_WIDTH, 1536, 2, 2)}, "camera"),
    "Wan2.2 I2V A14B": (_wan(36, sees=False), r"Wan2\.2.*(A14B|image-to-video)"),
    "Wan2.2 T2V A14B": (_T2V, "T2V"),
    "Wan2.2 TI2V 5B": (_wan(48, width=3072, sees=False), r"Wan2\.2.*5B"),
    "Wan2.2 Animate 14B": (
        {**_I2V, "pose_patch_embedding.weight": (_WIDTH, 16, 1, 2, 2),
         "face_adapter.fuser_blocks.0.k_norm.weight": (128,)}, "Animate"),
    "Wan2.2 S2V 14B": (
        {**_T2V, "audio_injector.injector.0.k.weight": (_WIDTH, _WIDTH),
         "casual_audio_encoder.encoder.final_linear.weight": (_WIDTH, 1024)}, "S2V"),
    "HuMo 17B": (
        {**_I2V, "audio_proj.audio_proj_glob_1.layer.weight": (512, 51200),
         "blocks.0.audio_cross_attn_wrapper.audio_cross_attn.q.weight": (_WIDTH, _WIDTH)}, "HuMo"),
    "SkyReels-V2 DF 14B": ({**_T2V, "fps_embedding.weight": (2, _WIDTH)}, "SkyReels"),
    "AnyTalker 14B": (
        {**_I2V, **_ADAPTER, "blocks.0.audio_cross_attn.k_face.weight": (_WIDTH, _WIDTH)},
        "AnyTalker"),
    "AnyTalker 1.3B": (
        {**_wan(36, width=1536), "blocks.0.cross_attn.k_audio.weight": (1536, 1536)}, "AnyTalker"),
    "LongCat-Avatar 1.0": (
        {"audio_proj.proj1.weight": (512, 46080), "blocks.0.audio_cross_attn.q_norm.weight": (128,),
         "blocks.0.audio_cross_attn.kv_linear.weight": (8192, 768),
         "patch_embedding.weight": (4096, 16, 1, 2, 2)}, "LongCat"),
    "optimum-quanto InfiniteTalk (MeiGen)": (
        {f"{_QUERY}._data": (_WIDTH, _WIDTH), f"{_QUERY}._scale": (_WIDTH, 1)}, "quanto"),
    "Flux": ({"double_blocks.0.img_attn.qkv.weight": (9216, 3072)}, "Flux"),
}  # fmt: skip

ADAPTERS: Mapping[str, tuple[Shapes, str]] = {
    "LongCat-Avatar module (`multitalk_audio_proj.`, Kijai)": (
        {"multitalk_audio_proj.proj1.weight": (512, 32000),
         "blocks.0.audio_cross_attn.q_norm.weight": (128,),
         "blocks.0.audio_cross_attn.kv_linear.weight": (8192, 768)}, "LongCat"),
    "LongCat-Avatar 1.5 int8": ({"blocks.0.attn.qkv.weight_int8": (12288, 4096)}, "LongCat"),
    "FantasyTalking module": (
        {"proj_model.proj.weight": (2048, 768),
         "blocks.0.cross_attn.processor.k_proj.weight": (_WIDTH, 2048)}, "FantasyTalking"),
    "Wan2.1 T2V 14B": (_T2V, "T2V"),
    "Wan2.1 I2V base": (_I2V, "image-to-video base"),
    "HuMo 17B": (
        {**_T2V, "audio_proj.audio_proj_glob_1.layer.weight": (512, 51200)}, "HuMo"),
    "Wan2.2 S2V 14B": (
        {**_T2V, "audio_injector.injector.0.k.weight": (_WIDTH, _WIDTH)}, "S2V"),
    "AnyTalker 14B": (
        {**_I2V, **_ADAPTER, "blocks.0.audio_cross_attn.k_face.weight": (_WIDTH, _WIDTH)},
        "AnyTalker"),
    "whole model with audio layers (SkyReels-V3, LightX2V)": (
        {**_I2V, **_ADAPTER}, "image-to-video base with"),
}  # fmt: skip

MISPLACED: Mapping[str, tuple[Shapes, str]] = {
    "MultiTalk adapter": (_ADAPTER, "MultiTalk or InfiniteTalk adapter"),
    "LoRA": ({"diffusion_model.blocks.0.self_attn.q.lora_A.weight": (64, _WIDTH)}, "is a LoRA"),
    "UMT5": (
        {"encoder.block.0.layer.0.SelfAttention.q.weight": (4096, 4096),
         "encoder.block.1.layer.0.SelfAttention.relative_attention_bias.weight": (32, 64)}, "UMT5"),
    "CLIP vision": (
        {"vision_model.encoder.layers.0.self_attn.q_proj.weight": (1280, 1280)}, "CLIP vision"),
    "Wav2Vec2": (
        {"wav2vec2.feature_extractor.conv_layers.0.conv.weight": (512, 1, 10)}, "Wav2Vec2"),
    "Wan2.1 VAE": (
        {"encoder.conv1.weight": (96, 3, 3, 3, 3), "decoder.conv1.weight": (384, 16, 3, 3, 3)},
        "Wan2.1 video VAE"),
}  # fmt: skip
"""Our own files in the place of the base."""

VAES: Mapping[str, tuple[Shapes, str]] = {
    "TAE (taew2_1)": (
        {"encoder.0.weight": (64, 3, 3, 3), "decoder.1.weight": (256, 16, 3, 3),
         "decoder.22.bias": (3,)}, "TAE|tiny autoencoder"),
    "lighttaew2_1": (
        {"encoder.0.weight": (64, 3, 3, 3), "decoder.1.weight": (256, 16, 3, 3),
         "decoder.22.bias": (3,)}, "TAE|tiny autoencoder"),
}  # fmt: skip


def rows() -> Iterator[Variant]:
    """Give all variants."""
    for name, (shapes, words) in BASES.items():
        yield Variant("lookalike", name, _header_only(shapes, words))
    for name, (shapes, words) in MISPLACED.items():
        yield Variant("lookalike", f"misplaced: {name}", _header_only(shapes, words))
    for name, (shapes, words) in ADAPTERS.items():
        yield Variant("adapter", f"lookalike: {name}", _header_only(shapes, words))
    for name, (shapes, words) in VAES.items():
        yield Variant("vae", f"lookalike: {name}", _header_only(shapes, words))


def _header_only(shapes: Shapes, words: str) -> Callable[[Path], Written]:
    """Write a file whose data is a hole: real shapes, and next to no bytes on disk."""

    def written(folder: Path) -> Written:
        path = folder / "file.safetensors"
        entries, offset = {}, 0
        for name, shape in shapes.items():
            size = 2 * torch.Size(shape).numel()
            entries[name] = {
                "dtype": "F16",
                "shape": shape,
                "data_offsets": [offset, offset + size],
            }
            offset += size
        header = json.dumps(entries).encode()
        header += b" " * (-len(header) % 8)
        with path.open("wb") as file:
            file.write(len(header).to_bytes(8, "little") + header)
            file.truncate(8 + len(header) + offset)
        return Written(path, Refused(words))

    return written
