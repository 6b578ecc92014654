"""Sizes of the transformer, the audio branch and the encoders, read from tensor shapes.

Knows names and shapes only, no file format; `identify.py` tells what a file is. Names are those of
upstream (`WanModel` in MultiTalk `wan/modules/multitalk_model.py`) and of `transformers`, without
prefixes.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace

from ..config import AUDIO_WINDOW, AudioConfig, ModelConfig
from ..errors import WeightsError
from ..geometry import FRAME_STRIDE
from .identify import Shapes, has_audio

HEAD_DIM = 128
"""Width of a head in every published Wan2.1 transformer."""
WAV2VEC2_LAYERS = 12
"""Layers of the base Wav2Vec2 that MultiTalk and InfiniteTalk listen with."""

_PATCH = 4
_CLIP_HEADS = {1280: 16, 1408: 16, 1664: 16}
"""Heads of ViT-H, ViT-g and ViT-bigG by width (OpenCLIP); smaller towers have heads of 64."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Umt5Sizes:
    """Sizes of a UMT5 encoder, under the names of `transformers.UMT5Config`."""

    vocab_size: int
    d_model: int
    d_kv: int
    d_ff: int
    num_layers: int
    num_heads: int
    relative_attention_num_buckets: int


@dataclass(frozen=True, kw_only=True, slots=True)
class ClipSizes:
    """Sizes of a CLIP vision tower, under the names of `transformers.CLIPVisionConfig`."""

    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_channels: int
    patch_size: int
    image_size: int


def model_config(
    shapes: Shapes,
    *,
    source: str,
    num_heads: int | None = None,
) -> ModelConfig:
    """Derive the sizes of a transformer; `audio` is set if the weights hold the audio branch.

    Args:
        shapes: Names and logical shapes of the weights.
        source: File name for messages.
        num_heads: Attention heads, if the file says; else one per 128 of the width.

    Raises:
        WeightsError: If a weight that tells a size is missing or the sizes do not fit together.
    """
    dim, in_channels = shape_of(shapes, "patch_embedding.weight", source=source, rank=5)[:2]
    if num_heads is None and dim % HEAD_DIM:
        raise WeightsError(
            f"{source} has a width of {dim}, which is no multiple of {HEAD_DIM}, and does not say "
            "how many heads it has. Write the head count into its metadata "
            "('wan.attention.head_count' in a GGUF, 'num_heads' in a safetensors file)."
        )
    config = ModelConfig(
        dim=dim,
        ffn_dim=shape_of(shapes, "blocks.0.ffn.0.weight", source=source)[0],
        num_heads=dim // HEAD_DIM if num_heads is None else num_heads,
        num_layers=num_blocks(shapes, "self_attn.q.weight", source=source),
        in_channels=in_channels,
        out_channels=shape_of(shapes, "head.head.weight", source=source)[0] // _PATCH,
        text_dim=shape_of(shapes, "text_embedding.0.weight", source=source)[1],
        image_dim=shape_of(shapes, "img_emb.proj.1.weight", source=source)[1],
        freq_dim=shape_of(shapes, "time_embedding.0.weight", source=source)[1],
    )
    if not has_audio(shapes):
        return config
    return replace(config, audio=audio_config(shapes, base=config, source=source))


def audio_config(shapes: Shapes, *, base: ModelConfig, source: str) -> AudioConfig:
    """Derive the sizes of an adapter's audio branch and check that it fits the base.

    Shapes tell only Wav2Vec2 layers times width; every published adapter listens to 12 layers.

    Args:
        shapes: Names and logical shapes of the adapter's weights.
        base: Sizes of the transformer that it extends.
        source: The adapter's file name for messages.

    Raises:
        WeightsError: If a weight is missing, the sizes contradict each other, or the adapter was
            made for a transformer of another width or number of blocks.
    """
    if not has_audio(shapes):
        raise WeightsError(
            f"{source} has no MultiTalk audio weights (no key starts with 'audio_proj.'). "
            "Load the base Wan file as the base and the MultiTalk file as the adapter."
        )
    width, token_dim = shape_of(shapes, "blocks.0.audio_cross_attn.kv_linear.weight", source=source)
    layers = num_blocks(shapes, "audio_cross_attn.kv_linear.weight", source=source)
    if (layers, width) != (base.num_layers, 2 * base.dim):
        raise WeightsError(
            f"{source} is an adapter for {layers} blocks of width {width // 2}, but the base has "
            f"{base.num_layers} blocks of width {base.dim}. Load an adapter and a base of one size "
            "(14B: 40 blocks of width 5120)."
        )
    hidden, first = shape_of(shapes, "audio_proj.proj1.weight", source=source)
    later = shape_of(shapes, "audio_proj.proj1_vf.weight", source=source)[1]
    slot = first // AUDIO_WINDOW
    if (first, later) != (slot * AUDIO_WINDOW, slot * (AUDIO_WINDOW + FRAME_STRIDE - 1)):
        raise WeightsError(
            f"{source} listens to windows of {first} and {later} numbers, which are not 5 and 8 "
            "features of one size. It is no MultiTalk or InfiniteTalk adapter; load one of these."
        )
    if not slot or slot % WAV2VEC2_LAYERS:
        raise WeightsError(
            f"{source} listens to features of {slot} numbers, which are not {WAV2VEC2_LAYERS} "
            "layers of one width. It is no MultiTalk or InfiniteTalk adapter; load one of these."
        )
    return AudioConfig(
        layers=WAV2VEC2_LAYERS,
        channels=slot // WAV2VEC2_LAYERS,
        hidden_dim=hidden,
        num_tokens=shape_of(shapes, "audio_proj.proj3.weight", source=source)[0] // token_dim,
        token_dim=token_dim,
        norm_tokens="audio_proj.norm.weight" in shapes,
        norm_visual="blocks.0.norm_x.weight" in shapes,
    )


def adapter_config(shapes: Shapes, *, source: str) -> ModelConfig:
    """Derive the sizes of an adapter without its base: of that only width and number of blocks.

    Raises:
        WeightsError: As `audio_config`.
    """
    part = "audio_cross_attn.kv_linear.weight"
    width = shape_of(shapes, f"blocks.0.{part}", source=source)[0] // 2
    blocks = num_blocks(shapes, part, source=source)
    base = ModelConfig(dim=width, num_heads=1, num_layers=blocks)
    return replace(base, audio=audio_config(shapes, base=base, source=source))


def wav2vec2_layers(shapes: Shapes, *, source: str) -> tuple[int, int]:
    """Give the number of layers of a Wav2Vec2 and their width.

    Raises:
        WeightsError: If a tensor that tells them is missing.
    """
    width = shape_of(shapes, "feature_projection.projection.weight", source=source)[0]
    return _count(shapes, "encoder.layers.", "attention.q_proj.weight", source), width


def umt5_sizes(shapes: Shapes, *, source: str) -> Umt5Sizes:
    """Derive the sizes of a UMT5 encoder from `transformers`' tensor names.

    Raises:
        WeightsError: If a tensor that tells a size is missing or has another rank, or the sizes
            contradict each other.
    """
    block = "encoder.block.0.layer"
    vocab_size, width = shape_of(shapes, "shared.weight", source=source)
    buckets, heads = shape_of(
        shapes, f"{block}.0.SelfAttention.relative_attention_bias.weight", source=source
    )
    inner = shape_of(shapes, f"{block}.0.SelfAttention.q.weight", source=source)[0]
    if inner % heads:
        raise WeightsError(
            f"{source}: a UMT5 attention of width {inner} cannot be split into {heads} heads. "
            "Download the file again."
        )
    return Umt5Sizes(
        vocab_size=vocab_size,
        d_model=width,
        d_kv=inner // heads,
        d_ff=shape_of(shapes, f"{block}.1.DenseReluDense.wi_0.weight", source=source)[0],
        num_layers=_count(shapes, "encoder.block.", "layer.0.SelfAttention.q.weight", source),
        num_heads=heads,
        relative_attention_num_buckets=buckets,
    )


def clip_sizes(shapes: Shapes, *, num_heads: int | None, source: str) -> ClipSizes:
    """Derive the sizes of a CLIP vision tower from `transformers`' tensor names.

    Args:
        shapes: Names and logical shapes of the weights.
        num_heads: Attention heads, if the file says; else those of the published tower of the same
            width.
        source: File name for messages.

    Raises:
        WeightsError: If a tensor that tells a size is missing or has another rank, or the sizes
            contradict each other.
    """
    prefix = "vision_model."
    width, channels, patch, _ = shape_of(
        shapes, f"{prefix}embeddings.patch_embedding.weight", source=source, rank=4
    )
    positions = shape_of(shapes, f"{prefix}embeddings.position_embedding.weight", source=source)[0]
    heads = num_heads or _CLIP_HEADS.get(width, max(1, width // 64))
    if width % heads:
        raise WeightsError(
            f"{source}: a width of {width} cannot be split into {heads} heads. "
            "Give the head count as 'num_heads' in the file's metadata."
        )
    layers = f"{prefix}encoder.layers."
    return ClipSizes(
        hidden_size=width,
        intermediate_size=shape_of(shapes, f"{layers}0.mlp.fc1.weight", source=source)[0],
        num_hidden_layers=_count(shapes, layers, "mlp.fc1.weight", source),
        num_attention_heads=heads,
        num_channels=channels,
        patch_size=patch,
        image_size=math.isqrt(positions - 1) * patch,
    )


def num_blocks(shapes: Shapes, part: str, *, source: str) -> int:
    """Count the transformer's blocks that have `part`; see `_count`."""
    return _count(shapes, "blocks.", part, source)


def shape_of(shapes: Shapes, name: str, *, source: str, rank: int = 2) -> tuple[int, ...]:
    """Give the shape of a tensor that must be there.

    Raises:
        WeightsError: If it is missing, has another number of dimensions, or a dimension of 0.
    """
    shape = shapes.get(name)
    if shape is None:
        raise WeightsError(
            f"{source} lacks '{name}'. The file is incomplete, or is not what this place needs; "
            "download it again."
        )
    if len(shape) != rank or 0 in shape:
        raise WeightsError(
            f"{source}: '{name}' has the shape {list(shape)}; {rank} dimensions above 0 are "
            "needed. The file is damaged; download it again."
        )
    return shape


def check_shapes(
    shapes: Shapes, needed: Mapping[str, tuple[int, ...]], *, source: str, what: str
) -> None:
    """Check that a file holds every tensor of a model in the model's shape.

    Args:
        shapes: Names and shapes in the file.
        needed: Names and shapes of the model.
        source: File name for messages.
        what: The model for messages, such as "a UMT5 encoder".

    Raises:
        WeightsError: If a tensor is missing or has another shape.
    """
    absent = [name for name in needed if name not in shapes]
    if absent:
        raise WeightsError(
            f"{source} lacks {len(absent)} of the {len(needed)} tensors of {what}, such as "
            f"'{absent[0]}'. Download it again, or take another file."
        )
    for name, shape in needed.items():
        if shapes[name] != shape:
            raise WeightsError(
                f"{source}: '{name}' has the shape {list(shapes[name])}, but the other tensors "
                f"need {list(shape)}. Download it again, or take another file."
            )


def _count(shapes: Shapes, prefix: str, part: str, source: str) -> int:
    """Count the layers that have `part`; they must be numbered from 0 without a gap.

    Raises:
        WeightsError: If there is none, or one is missing in between.
    """
    pattern = re.compile(rf"{re.escape(prefix)}(\d+)\.{re.escape(part)}")
    found = {int(match[1]) for name in shapes if (match := pattern.fullmatch(name))}
    missing = next((i for i in range(len(found) + 1) if i not in found), 0)
    if missing < len(found) or not found:
        raise WeightsError(
            f"{source} lacks '{prefix}{missing}.{part}'. "
            "The file is incomplete, or is not what this place needs; download it again."
        )
    return len(found)
