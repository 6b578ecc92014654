"""Floating-point operations of one forward, counted from the model's sizes.

A multiplication and an addition are two operations. L-RoPE's reference map uses scores that
self-attention computes anyway, so a second speaker adds only the longer audio.
"""

from __future__ import annotations

from typing import NamedTuple

from ....multitalk_core.config import AudioConfig, ModelConfig
from ....multitalk_core.geometry import GridSize
from ....multitalk_core.model.attention import IMAGE_TOKENS

_PATCH = 4
"""Latents of one channel in a token."""


class Flops(NamedTuple):
    """Operations of one forward, by part; linear layers first, then attention's two products.

    Attributes:
        square: Layers of every video token, width to width: q, k, v, o, the queries and outputs
            of both cross-attentions.
        ffn_in: First layers of the feed-forward parts.
        ffn_out: Second ones.
        context_kv: Keys and values of text and photo.
        audio_kv: Keys and values of the voices.
        embeddings: Patches, time, text, photo and head.
        self_attention: Among video tokens.
        cross_attention: To text and photo.
        audio_attention: To the voices.
    """

    square: int
    ffn_in: int
    ffn_out: int
    context_kv: int
    audio_kv: int
    embeddings: int
    self_attention: int
    cross_attention: int
    audio_attention: int

    @property
    def attention(self) -> int:
        """All attention."""
        return self.self_attention + self.cross_attention + self.audio_attention

    @property
    def linears(self) -> int:
        """All linear layers."""
        return self.total - self.attention

    @property
    def total(self) -> int:
        """Everything."""
        return sum(self)


class Rates(NamedTuple):
    """What the device reaches on random data: operations and bytes per second."""

    square: float
    ffn_in: float
    ffn_out: float
    attention: float
    copy: float


def forward_flops(config: ModelConfig, grid: GridSize, *, num_speakers: int) -> Flops:
    """Count one forward of a batch of one; without an audio branch, leave the voices out."""
    dim, blocks = config.dim, config.num_layers
    tokens = grid.frames * grid.height * grid.width
    context = IMAGE_TOKENS + config.text_len
    audio = config.audio or AudioConfig(num_tokens=0)
    voices = num_speakers * audio.num_tokens  # audio tokens of one latent frame
    squares = 8 if config.audio else 6
    return Flops(
        square=blocks * squares * _linear(tokens, dim, dim),
        ffn_in=blocks * _linear(tokens, dim, config.ffn_dim),
        ffn_out=blocks * _linear(tokens, config.ffn_dim, dim),
        context_kv=blocks * 2 * _linear(context, dim, dim),
        audio_kv=blocks * _linear(grid.frames * voices, audio.token_dim, 2 * dim),
        embeddings=_embeddings(config, tokens),
        self_attention=blocks * attention_flops(tokens, tokens, dim),
        cross_attention=blocks * attention_flops(tokens, context, dim),
        audio_attention=blocks * attention_flops(tokens, voices, dim),
    )


def attention_flops(queries: int, keys: int, dim: int) -> int:
    """Count scores and weighted values over all heads."""
    return 4 * queries * keys * dim


def floor_seconds(flops: Flops, rates: Rates) -> float:
    """Give the least time of a forward at the measured rates, nothing overlapping."""
    others = flops.square + flops.context_kv + flops.audio_kv + flops.embeddings
    linears = others / rates.square + flops.ffn_in / rates.ffn_in + flops.ffn_out / rates.ffn_out
    return linears + flops.attention / rates.attention


def _linear(rows: int, inputs: int, outputs: int) -> int:
    return 2 * rows * inputs * outputs


def _embeddings(config: ModelConfig, tokens: int) -> int:
    dim = config.dim
    return (
        _linear(tokens, _PATCH * config.in_channels, dim)
        + _linear(tokens, dim, _PATCH * config.out_channels)
        + _linear(1, config.freq_dim + 7 * dim, dim)
        + _linear(config.text_len, config.text_dim + dim, dim)
        + _linear(IMAGE_TOKENS, config.image_dim + dim, config.image_dim)
    )
