"""What a weights file is, told from the names and shapes of its tensors, never from its file name.

Many files around Wan2.1 share names: adapters of other audio methods, other Wan models, and weights
in forms that are not read. `lookalikes.py` lists what tells each, so that a wrong choice becomes
one sentence. Some models have the same names and shapes (`SAME_TENSORS`); the user says which one a
file is.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from enum import Enum
from types import MappingProxyType
from typing import NamedTuple

from ..errors import WeightsError
from .lookalikes import (
    BASES,
    ENDINGS,
    MARKS,
    MODEL_TYPES,
    OTHER_ENCODERS,
    OTHER_VAES,
    PRUNED_VAES,
)

Shapes = Mapping[str, tuple[int, ...]]
"""Names of a file's tensors, without prefixes, and their logical shapes."""


Metadata = Mapping[str, object]
"""Values of a file's header by key."""


class FileKind(Enum):
    """Kinds of weights files; the value is what a message calls one."""

    BASE_I2V = "a Wan2.1 image-to-video base"
    ADAPTER = "a MultiTalk or InfiniteTalk adapter"
    MERGED = "a Wan2.1 image-to-video base with audio layers (MultiTalk, InfiniteTalk, FlashTalk)"
    LORA = "a LoRA"
    VAE = "a Wan2.1 video VAE"
    UMT5 = "a UMT5 text encoder"
    CLIP_VISION = "a CLIP vision model"
    WAV2VEC2 = "a Wav2Vec2 model"
    OTHER = "a file for something else"
    UNKNOWN = "a file of no known kind"


class Identity(NamedTuple):
    """A file's kind and a noun phrase that says what it is."""

    kind: FileKind
    description: str


_WHERE_TO_GET = {
    FileKind.BASE_I2V: "Get wan2.1-i2v-14b-480p-Q4_K_M.gguf from city96/Wan2.1-I2V-14B-480P-gguf.",
    FileKind.ADAPTER: "Get Wan2_1-InfiniteTalk-Multi_fp16.safetensors (method infinitetalk) from "
    "Kijai/WanVideo_comfy, or multitalk.safetensors from MeiGen-AI/MeiGen-MultiTalk.",
    FileKind.LORA: "Get Wan21_T2V_14B_lightx2v_cfg_step_distill_lora_rank32.safetensors from "
    "Kijai/WanVideo_comfy, or another LoRA of Wan2.1 14B.",
    FileKind.VAE: "Get wan_2.1_vae.safetensors from Comfy-Org/Wan_2.1_ComfyUI_repackaged.",
    FileKind.UMT5: "Get umt5_xxl_fp16.safetensors from Comfy-Org/Wan_2.1_ComfyUI_repackaged.",
    FileKind.CLIP_VISION: "Get clip_vision_h.safetensors from "
    "Comfy-Org/Wan_2.1_ComfyUI_repackaged.",
    FileKind.WAV2VEC2: "Get wav2vec2-chinese-base_fp16.safetensors from "
    "Kijai/wav2vec2_safetensors.",
}

_WHERE_IT_GOES = {
    FileKind.BASE_I2V: "Load this file as the base.",
    FileKind.ADAPTER: "Load this file as the adapter, on top of a base.",
    FileKind.MERGED: "Load this file as the base; it needs no adapter.",
    FileKind.LORA: "Load this file as a LoRA.",
    FileKind.VAE: "Load this file as the VAE.",
    FileKind.UMT5: "Load this file as the text encoder.",
    FileKind.CLIP_VISION: "Load this file as the CLIP vision model.",
    FileKind.WAV2VEC2: "Load this file as the Wav2Vec2 model.",
}

SAME_TENSORS = {
    FileKind.BASE_I2V: "Wan2.1 I2V, Wan2.1 Fun-InP or SkyReels-V2 I2V",
    FileKind.ADAPTER: "MultiTalk or InfiniteTalk, for one speaker or for several",
    FileKind.MERGED: "MultiTalk, InfiniteTalk, LightX2V's distilled InfiniteTalk, SoulX-FlashTalk "
    "or SkyReels-V3-A2V",
    FileKind.WAV2VEC2: "chinese-wav2vec2-base, which the adapters need, or wav2vec2-base-960h",
}
"""Models that cannot be told apart: their tensors have the same names and shapes."""

_LORA_MARKS = (
    *(".lora_A.", ".lora_B.", ".lora_a.", ".lora_b."),
    *(".lora_down.", ".lora_up.", ".lora.down.", ".lora.up.", ".lora_linear_layer."),
    *(".hada_w", ".lokr_w", ".lora_magnitude_vector"),
)
_LORA_ENDS = (".diff", ".diff_b", ".diff_m", ".lora_A", ".lora_B", ".dora_scale")
_SCALE_ENDS = (".scale_weight", ".weight_scale", ".weight_scale_2")

_QUERY = "blocks.0.self_attn.q.weight"
_PATCH = "patch_embedding.weight"
_AUDIO = "blocks.0.audio_cross_attn.kv_linear.weight"
_VAE_KEYS = ("decoder.conv1.weight", "decoder.conv_in.weight")  # Wan's own, diffusers'
_VAE_WIDTHS = ("decoder.head.0.gamma", "decoder.norm_out.gamma")
_VAE_CHANNELS = 16
_RANKS = {_QUERY: 2, _PATCH: 2, _AUDIO: 2, **dict.fromkeys(_VAE_KEYS, 4)}
"""Dimensions that `identify` reads of a tensor."""

_ENCODERS = {
    "encoder.block.1.layer.0.SelfAttention.relative_attention_bias.weight": FileKind.UMT5,
    "vision_model.encoder.layers.0.self_attn.q_proj.weight": FileKind.CLIP_VISION,
    "feature_extractor.conv_layers.0.conv.weight": FileKind.WAV2VEC2,
    "wav2vec2.feature_extractor.conv_layers.0.conv.weight": FileKind.WAV2VEC2,
}
"""Tensors that tell the encoders."""

_TITLE_KEYS = (
    *("general.name", "general.basename", "general.base_model.0.name"),  # GGUF
    *("modelspec.title", "modelspec.architecture", "title", "name"),  # safetensors
)
_TITLE_LENGTH = 80


def identify(shapes: Shapes, metadata: Metadata = MappingProxyType({})) -> Identity:
    """Tell what a file is.

    Args:
        shapes: Names, without prefixes such as `model.diffusion_model.`, and logical shapes.
        metadata: Values of the file's header. They tell some models whose tensors are Wan2.1's.
    """
    if _QUERY in shapes and (description := MODEL_TYPES.get(_model_type(metadata))):
        return Identity(FileKind.OTHER, description)
    for test in (_lora, _lookalike, _damaged, _transformer, _encoder, _vae):
        if identity := test(shapes):
            return identity
    first = next(iter(shapes), None)
    example = f"its first tensor is '{first}'" if first else "it holds no tensor"
    return Identity(FileKind.UNKNOWN, f"{FileKind.UNKNOWN.value} ({example})")


def require(
    identity: Identity, wanted: FileKind | Collection[FileKind], *, source: str, place: str
) -> None:
    """Refuse a file that is not of a wanted kind.

    Args:
        identity: What the file is.
        wanted: The kind, or kinds, that the place takes; the first named is the usual one.
        source: File name for the message.
        place: What asks for the file, such as "the base".

    Raises:
        WeightsError: What the file is, what is needed, where to get that, and where this one goes.
    """
    kinds = [wanted] if isinstance(wanted, FileKind) else list(wanted)
    if identity.kind in kinds:
        return
    needed = " or ".join(kind.value for kind in kinds)
    advice = [_WHERE_TO_GET.get(kinds[0], ""), _WHERE_IT_GOES.get(identity.kind, "")]
    raise WeightsError(
        " ".join((f"{source} is {identity.description}; {place} needs {needed}.", *advice)).rstrip()
    )


def has_audio(shapes: Shapes) -> bool:
    """Tell whether the weights hold the audio branch."""
    return "audio_proj.proj1.weight" in shapes


def has_fp8_scales(shapes: Shapes) -> bool:
    """Tell whether the weights are eight-bit floats that mean nothing without separate scales."""
    return "scaled_fp8" in shapes or any(name.endswith(_SCALE_ENDS) for name in shapes)


def title_of(metadata: Metadata) -> str | None:
    """Give the name by which a file calls itself in its metadata, if it does.

    It tells models whose tensors are alike, as far as whoever made the file wrote it down.
    """
    titles = (metadata.get(key) for key in _TITLE_KEYS)
    title = next((title for title in titles if isinstance(title, str) and title.strip()), None)
    if title is None:
        return None
    return "".join(sign for sign in title.strip() if sign.isprintable())[:_TITLE_LENGTH]


def _model_type(metadata: Metadata) -> str:
    """Give `transformer.model_type` of the JSON under `config`, if there is one."""
    config = metadata.get("config")
    try:
        parsed = json.loads(config) if isinstance(config, str) else None
    except (ValueError, RecursionError):
        return ""
    transformer = parsed.get("transformer") if isinstance(parsed, dict) else None
    return str(transformer.get("model_type")) if isinstance(transformer, dict) else ""


def _lora(shapes: Shapes) -> Identity | None:
    for name in shapes:
        marked = name.endswith(_LORA_ENDS) or any(mark in name for mark in _LORA_MARKS)
        if marked or name.startswith("lora_"):
            return Identity(FileKind.LORA, FileKind.LORA.value)
    return None


def _lookalike(shapes: Shapes) -> Identity | None:
    for ending, description in ENDINGS.items():
        if any(name.endswith(ending) for name in shapes):
            return Identity(FileKind.OTHER, description)
    for mark in MARKS:
        shape = shapes.get(mark.name)
        if shape is not None and mark.width in (None, *shape[-1:]):
            return Identity(FileKind.OTHER, mark.description)
    return None


def _damaged(shapes: Shapes) -> Identity | None:
    """Name a tensor of fewer dimensions than what tells the kinds apart needs."""
    for name, rank in _RANKS.items():
        shape = shapes.get(name)
        if shape is not None and len(shape) < rank:
            return Identity(
                FileKind.OTHER,
                f"damaged ('{name}' has the shape {list(shape)}; {rank} dimensions are needed)",
            )
    return None


def _transformer(shapes: Shapes) -> Identity | None:
    if _QUERY not in shapes:
        return _adapter(shapes)
    width, blocks = shapes[_QUERY][0], _num_blocks(shapes)
    size = f"{blocks} blocks of width {width}"
    patch = shapes.get(_PATCH)
    if patch is None:
        return Identity(
            FileKind.OTHER,
            "a Wan transformer without 'patch_embedding.weight' "
            "(a GGUF whose five-dimensional tensor was dropped when it was made)",
        )
    channels, sees = patch[1], "img_emb.proj.1.weight" in shapes
    for base in BASES:
        if all(
            told is None or told == found
            for told, found in ((base.channels, channels), (base.width, width), (base.sees, sees))
        ):
            return Identity(FileKind.OTHER, f"{base.description} ({size})")
    if channels != 36:
        return Identity(FileKind.OTHER, f"a Wan model with {channels} input channels ({size})")
    return _sized(FileKind.MERGED if has_audio(shapes) else FileKind.BASE_I2V, size)


def _adapter(shapes: Shapes) -> Identity | None:
    if not has_audio(shapes) or _AUDIO not in shapes:
        return None
    return _sized(
        FileKind.ADAPTER, f"for {_num_blocks(shapes)} blocks of width {shapes[_AUDIO][0] // 2}"
    )


def _encoder(shapes: Shapes) -> Identity | None:
    for name, kind in _ENCODERS.items():
        if name in shapes:
            return Identity(kind, kind.value)
    others = (text for name, text in OTHER_ENCODERS.items() if name in shapes)
    return next((Identity(FileKind.OTHER, text) for text in others), None)


def _vae(shapes: Shapes) -> Identity | None:
    shape = next((shapes[name] for name in _VAE_KEYS if name in shapes), None)
    if shape is None:
        return None
    if len(shape) == 4:
        return Identity(FileKind.OTHER, "an image VAE")
    if shape[1] != _VAE_CHANNELS:
        other = f"a video VAE of {shape[1]} channels, not Wan2.1's"
        return Identity(FileKind.OTHER, OTHER_VAES.get(shape[1], other))
    width = next((shapes[name][0] for name in _VAE_WIDTHS if shapes.get(name)), 0)
    return Identity(FileKind.VAE, PRUNED_VAES.get(width, FileKind.VAE.value))


def _sized(kind: FileKind, size: str) -> Identity:
    return Identity(kind, f"{kind.value} ({size})")


def _num_blocks(shapes: Shapes) -> int:
    numbers = {name.split(".")[1] for name in shapes if name.startswith("blocks.")}
    return len(numbers)
