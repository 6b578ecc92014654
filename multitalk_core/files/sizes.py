"""Sizes of the transformer and of the audio branch, read from the shapes of their weights.

Knows names and shapes only, no file format; what a file is at all is told by `identify.py`, whose
names are offered here too. Names are upstream's (`WanModel` in MultiTalk
`wan/modules/multitalk_model.py`), without prefixes.
"""

from __future__ import annotations

import re
from dataclasses import replace

from ..config import AUDIO_WINDOW, AudioConfig, ModelConfig
from ..errors import WeightsError
from ..geometry import FRAME_STRIDE
from .identify import FileKind, Identity, Shapes, has_audio, has_fp8_scales, identify, require

__all__ = [
    "FileKind",
    "Identity",
    "Shapes",
    "audio_config",
    "has_audio",
    "has_fp8_scales",
    "identify",
    "model_config",
    "require",
]

HEAD_DIM = 128
"""Width of a head in every published Wan2.1 transformer."""
WAV2VEC2_LAYERS = 12
"""Layers of the base Wav2Vec2 that MultiTalk and InfiniteTalk listen with."""

_PATCH = 4


def model_config(
    shapes: Shapes,
    *,
    source: str,
    num_heads: int | None = None,
    text_len: int = 512,
    audio_layers: int | None = None,
) -> ModelConfig:
    """Derive the sizes of a transformer; `audio` is set if the weights hold the audio branch.

    Args:
        shapes: Names and logical shapes of the weights.
        source: File name for messages.
        num_heads: Attention heads, if the file says; else one per 128 of the width.
        text_len: Text tokens the model was trained with; leaves no trace in shapes.
        audio_layers: Wav2Vec2 layers, if the file says; see `audio_config`.

    Raises:
        WeightsError: If a weight that tells a size is missing or the sizes do not fit together.
    """
    dim, in_channels = _shape(shapes, "patch_embedding.weight", source)[:2]
    if num_heads is None and dim % HEAD_DIM:
        raise WeightsError(
            f"{source} has a width of {dim}, which is no multiple of {HEAD_DIM}, and does not say "
            "how many heads it has. Write the head count into its metadata "
            "('wan.attention.head_count' in a GGUF, 'num_heads' in a safetensors file)."
        )
    config = ModelConfig(
        dim=dim,
        ffn_dim=_shape(shapes, "blocks.0.ffn.0.weight", source)[0],
        num_heads=dim // HEAD_DIM if num_heads is None else num_heads,
        num_layers=num_blocks(shapes, "self_attn.q.weight", source=source),
        in_channels=in_channels,
        out_channels=_shape(shapes, "head.head.weight", source)[0] // _PATCH,
        text_dim=_shape(shapes, "text_embedding.0.weight", source)[1],
        text_len=text_len,
        image_dim=_shape(shapes, "img_emb.proj.1.weight", source)[1],
        freq_dim=_shape(shapes, "time_embedding.0.weight", source)[1],
    )
    if not has_audio(shapes):
        return config
    audio = audio_config(shapes, base=config, source=source, audio_layers=audio_layers)
    return replace(config, audio=audio)


def audio_config(
    shapes: Shapes, *, base: ModelConfig, source: str, audio_layers: int | None = None
) -> AudioConfig:
    """Derive the sizes of an adapter's audio branch and check that it fits the base.

    Args:
        shapes: Names and logical shapes of the adapter's weights.
        base: Sizes of the transformer it is put on.
        source: The adapter's file name for messages.
        audio_layers: Wav2Vec2 layers it listens to. Shapes tell only layers times width, so 12
            layers are taken, as in every published adapter, unless the file says otherwise.

    Raises:
        WeightsError: If a weight is missing, the sizes contradict each other, or the adapter was
            made for a transformer of another width or number of blocks.
    """
    if not has_audio(shapes):
        raise WeightsError(
            f"{source} has no MultiTalk audio weights (no key starts with 'audio_proj.'). "
            "Load the base Wan file as the base and the MultiTalk file as the adapter."
        )
    width, token_dim = _shape(shapes, "blocks.0.audio_cross_attn.kv_linear.weight", source)
    layers = num_blocks(shapes, "audio_cross_attn.kv_linear.weight", source=source)
    if (layers, width) != (base.num_layers, 2 * base.dim):
        raise WeightsError(
            f"{source} is an adapter for {layers} blocks of width {width // 2}, but the base has "
            f"{base.num_layers} blocks of width {base.dim}. Load an adapter and a base of one size "
            "(14B: 40 blocks of width 5120)."
        )
    hidden, first = _shape(shapes, "audio_proj.proj1.weight", source)
    later = _shape(shapes, "audio_proj.proj1_vf.weight", source)[1]
    slot = first // AUDIO_WINDOW
    num_layers = WAV2VEC2_LAYERS if audio_layers is None else audio_layers
    if (first, later) != (slot * AUDIO_WINDOW, slot * (AUDIO_WINDOW + FRAME_STRIDE - 1)):
        raise WeightsError(
            f"{source} listens to windows of {first} and {later} numbers, which are not 5 and 8 "
            "features of one size. It is no MultiTalk or InfiniteTalk adapter; load one of these."
        )
    if num_layers < 1 or slot % num_layers:
        raise WeightsError(
            f"{source} listens to features of {slot} numbers, which are not {num_layers} layers of "
            "one width. Write the number of Wav2Vec2 layers into its metadata ('audio_layers')."
        )
    return AudioConfig(
        layers=num_layers,
        channels=slot // num_layers,
        hidden_dim=hidden,
        num_tokens=_shape(shapes, "audio_proj.proj3.weight", source)[0] // token_dim,
        token_dim=token_dim,
        norm_tokens="audio_proj.norm.weight" in shapes,
        norm_visual="blocks.0.norm_x.weight" in shapes,
    )


def num_blocks(shapes: Shapes, part: str, *, source: str) -> int:
    """Count the blocks that have `part`; they must be numbered from 0 without a gap.

    Raises:
        WeightsError: If there is none, or one is missing in between.
    """
    pattern = re.compile(rf"blocks\.(\d+)\.{re.escape(part)}")
    found = {int(match[1]) for name in shapes if (match := pattern.fullmatch(name))}
    missing = sorted(set(range(max(found, default=0) + 1)) - found)
    if missing:
        raise WeightsError(
            f"{source} lacks 'blocks.{missing[0]}.{part}'. "
            "The file is incomplete, or is not what this place needs; download it again."
        )
    return len(found)


def _shape(shapes: Shapes, name: str, source: str) -> tuple[int, ...]:
    if name not in shapes or len(shapes[name]) < 2:
        state = "lacks" if name not in shapes else f"has the shape {shapes[name]} for"
        raise WeightsError(
            f"{source} {state} '{name}'. "
            "The file is incomplete, or is not what this place needs; download it again."
        )
    return shapes[name]
