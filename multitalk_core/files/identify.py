"""What a weights file is, told from the names and shapes of its tensors, never from its file name.

Many files around Wan2.1 share names: adapters of other audio methods, other Wan models, and weights
in forms that would load as noise. Each has a key of its own, so that a wrong choice becomes one
sentence. MultiTalk and InfiniteTalk adapters have the same names and shapes; the user says which
one a file is.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from enum import Enum
from typing import NamedTuple

from ..errors import WeightsError

Shapes = Mapping[str, tuple[int, ...]]
"""Names of a file's tensors, without prefixes, and their logical shapes."""


class FileKind(Enum):
    """Kinds of weights files; the value is what a message calls one."""

    BASE_I2V = "a Wan2.1 image-to-video base"
    BASE_T2V = "a Wan text-to-video base"
    BASE_FLF2V = "a Wan2.1 first-and-last-frame base"
    ADAPTER = "a MultiTalk or InfiniteTalk adapter"
    MERGED = "a Wan2.1 image-to-video base with a MultiTalk or InfiniteTalk adapter merged in"
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

_LORA_MARKS = (
    *(".lora_A.", ".lora_B.", ".lora_a.", ".lora_b."),
    *(".lora_down.", ".lora_up.", ".lora.down.", ".lora.up.", ".lora_linear_layer."),
    *(".hada_w", ".lokr_w", ".lora_magnitude_vector"),
)
_LORA_ENDS = (".diff", ".diff_b", ".lora_A", ".lora_B", ".dora_scale")
_SCALE_ENDS = (".scale_weight", ".weight_scale", ".weight_scale_2")

_QUERY = "blocks.0.self_attn.q.weight"
_PATCH = "patch_embedding.weight"
_AUDIO = "blocks.0.audio_cross_attn.kv_linear.weight"
_VAE_KEYS = ("decoder.conv1.weight", "decoder.conv_in.weight")  # Wan's own, diffusers'
_RANKS = {_QUERY: 2, _PATCH: 2, _AUDIO: 2, **dict.fromkeys(_VAE_KEYS, 4)}
"""Dimensions that `identify` reads of a tensor."""

_LOOKALIKES = {
    "audio_proj.audio_proj_glob_1.layer.weight": "a HuMo model (another audio method)",
    "multitalk_audio_proj.proj1.weight": "a LongCat-Avatar model (another audio method)",
    "blocks.0.audio_cross_attn.q_norm.weight": "a LongCat-Avatar model (another audio method)",
    "proj_model.proj.weight": "a FantasyTalking model (another audio method)",
    "audio_injector.injector.0.k.weight": "a Wan2.2-S2V model (another audio method)",
    "casual_audio_encoder.encoder.final_linear.weight": "a Wan2.2-S2V model (another audio method)",
    "vace_blocks.0.self_attn.q.weight": "a VACE model of Wan2.1",
    "control_adapter.conv.weight": "a Wan Fun model with camera control",
    "face_adapter.fuser_blocks.0.k_norm.weight": "a Wan2.2-Animate model",
    "blocks.0.attn1.to_q.weight": "a Wan transformer in diffusers' key names",
    "patch_embedding_pose.weight": "a Wan model that follows a pose",
    "blocks.0.pos_embedding.embedding.weight": "a UMT5 text encoder in Wan's original key names",
    "visual.patch_embedding.weight": "a CLIP model in Wan's original key names",
    "double_blocks.0.img_attn.qkv.weight": "a Flux or HunyuanVideo transformer",
}
"""Key that only such a file has -> what it is."""


def identify(shapes: Shapes) -> Identity:
    """Tell what a file is.

    Args:
        shapes: Names, without prefixes such as `model.diffusion_model.`, and logical shapes.
    """
    for test in (_lora, _unreadable, _lookalike, _damaged, _transformer, _encoder, _vae):
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


def _lora(shapes: Shapes) -> Identity | None:
    for name in shapes:
        marked = name.endswith(_LORA_ENDS) or any(mark in name for mark in _LORA_MARKS)
        if marked or name.startswith("lora_"):
            return Identity(FileKind.LORA, FileKind.LORA.value)
    return None


def _unreadable(shapes: Shapes) -> Identity | None:
    if any(name.endswith(("._data", "._data._data")) for name in shapes):
        return Identity(FileKind.OTHER, "quantised by optimum-quanto, a form that is not read here")
    if any(name.endswith(".weight_int8") for name in shapes):
        return Identity(FileKind.OTHER, "an int8 model of LongCat-Avatar (another audio method)")
    transformer = any(name.startswith("blocks.") for name in shapes)
    if transformer and has_fp8_scales(shapes):
        return Identity(
            FileKind.OTHER,
            "in scaled FP8, a form that is not read here (take GGUF, BF16, FP16 or plain FP8)",
        )
    return None


def _lookalike(shapes: Shapes) -> Identity | None:
    for name, description in _LOOKALIKES.items():
        if name in shapes:
            return Identity(FileKind.OTHER, description)
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
    base = _QUERY in shapes
    if not base:
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
    if patch[1] == 16:
        return _sized(FileKind.BASE_T2V, size)
    if patch[1] != 36:
        return Identity(FileKind.OTHER, f"a Wan model with {patch[1]} input channels ({size})")
    if "img_emb.proj.1.weight" not in shapes:
        return Identity(
            FileKind.OTHER, f"a Wan2.2 image-to-video base without CLIP vision ({size})"
        )
    if "img_emb.emb_pos" in shapes:
        return _sized(FileKind.BASE_FLF2V, size)
    return _sized(FileKind.MERGED if has_audio(shapes) else FileKind.BASE_I2V, size)


def _adapter(shapes: Shapes) -> Identity | None:
    if not has_audio(shapes) or _AUDIO not in shapes:
        return None
    return _sized(
        FileKind.ADAPTER, f"for {_num_blocks(shapes)} blocks of width {shapes[_AUDIO][0] // 2}"
    )


def _encoder(shapes: Shapes) -> Identity | None:
    keys: dict[str, FileKind] = {
        "encoder.block.1.layer.0.SelfAttention.relative_attention_bias.weight": FileKind.UMT5,
        "vision_model.encoder.layers.0.self_attn.q_proj.weight": FileKind.CLIP_VISION,
        "feature_extractor.conv_layers.0.conv.weight": FileKind.WAV2VEC2,
        "wav2vec2.feature_extractor.conv_layers.0.conv.weight": FileKind.WAV2VEC2,
    }
    for name, kind in keys.items():
        if name in shapes:
            return Identity(kind, kind.value)
    others = {
        "encoder.block.0.layer.0.SelfAttention.q.weight": "a T5 text encoder, not UMT5",
        "encoder.layers.0.fc1.weight": "a Whisper or another speech model, not Wav2Vec2",
    }
    return next((Identity(FileKind.OTHER, text) for k, text in others.items() if k in shapes), None)


def _vae(shapes: Shapes) -> Identity | None:
    for name in _VAE_KEYS:
        shape = shapes.get(name, ())
        if len(shape) == 5 and shape[1] == 16:
            return Identity(FileKind.VAE, FileKind.VAE.value)
        if len(shape) == 5:
            return Identity(FileKind.OTHER, f"a video VAE of {shape[1]} channels, not Wan2.1's")
        if len(shape) == 4:
            return Identity(FileKind.OTHER, "an image VAE")
    return None


def _sized(kind: FileKind, size: str) -> Identity:
    return Identity(kind, f"{kind.value} ({size})")


def _num_blocks(shapes: Shapes) -> int:
    numbers = {name.split(".")[1] for name in shapes if name.startswith("blocks.")}
    return len(numbers)
