"""The values that every file of the zoo stores: one fixed set for each model, float32.

Names are the model's own; sizes are the smallest that every storage type takes (rows of 256).
"""

from __future__ import annotations

import dataclasses
import functools
import zlib
from collections.abc import Mapping

import sentencepiece
import torch
from torch import Tensor
from transformers import UMT5Config

from ...multitalk_core.model.dit import MultiTalkModel
from ..tiny import encoders, vae, wan
from ..tiny.fill import fill, meta_shapes

Values = Mapping[str, Tensor]

SEED = 13
CONFIG = dataclasses.replace(wan.CONFIG, num_heads=2, text_dim=256)
"""Heads of 128 channels, as every published Wan has, so that no file needs to say their number."""
NUM_HEADS = encoders.NUM_HEADS
PROMPT = "A woman talks to the camera, half smiling; 42 % caf\u00e9."
"""What a text encoder's tokenizer must cut like the one that was stored."""
TOKENS = "tokens"
"""Name of the prompt's tokens among the values of a text encoder."""
_NUM_PIECES = 400


@functools.cache
def transformer() -> Values:
    """Give the base with the adapter in it."""
    shapes = meta_shapes(MultiTalkModel(CONFIG, device="meta"))
    return _told_apart(fill(shapes, seed=SEED, std=wan.STD))


@functools.cache
def base() -> Values:
    """Give the Wan2.1 image-to-video base."""
    return {name: value for name, value in transformer().items() if not wan.is_audio(name)}


@functools.cache
def adapter() -> Values:
    """Give the MultiTalk or InfiniteTalk adapter."""
    return {name: value for name, value in transformer().items() if wan.is_audio(name)}


@functools.cache
def wav2vec2() -> Values:
    """Give a Wav2Vec2 under `transformers`' names, its weight norm as `weight_g` and `weight_v`."""
    drawn = _told_apart(encoders.wav2vec2(seed=SEED))
    return {name.removeprefix("wav2vec2."): value for name, value in drawn.items()}


@functools.cache
def clip_vision() -> Values:
    """Give a CLIP vision tower under `transformers`' names, without `vision_model.`."""
    drawn = _told_apart(encoders.clip_vision(seed=SEED))
    return {name.removeprefix("vision_model."): value for name, value in drawn.items()}


@functools.cache
def umt5() -> Values:
    """Give a UMT5 encoder under `transformers`' names, without its tokenizer."""
    pieces = sentencepiece.SentencePieceProcessor(model_proto=tokenizer())
    config = UMT5Config(
        vocab_size=pieces.get_piece_size(),
        d_model=CONFIG.text_dim,
        d_kv=64,
        d_ff=512,
        num_layers=2,
        num_heads=NUM_HEADS,
        feed_forward_proj="gated-gelu",
    )
    return _told_apart(fill(encoders.umt5_shapes(config), seed=SEED))


@functools.cache
def tokenizer() -> bytes:
    """Give the serialised sentencepiece model of the text encoder."""
    return encoders.sentencepiece_model(encoders.page(), num_pieces=_NUM_PIECES)


@functools.cache
def prompt_tokens() -> Tensor:
    """Give the token numbers of `PROMPT`, the end mark last."""
    pieces = sentencepiece.SentencePieceProcessor(model_proto=tokenizer())
    return torch.tensor([*pieces.encode(PROMPT), pieces.eos_id()])


@functools.cache
def autoencoder() -> Values:
    """Give a video autoencoder under Wan's own names."""
    return _told_apart(vae.vae(seed=SEED))


def noise(name: str, shape: tuple[int, ...]) -> Tensor:
    """Draw standard normal numbers that only the name decides."""
    generator = torch.Generator().manual_seed(SEED + zlib.crc32(name.encode()))
    return torch.randn(shape, generator=generator)


def _told_apart(weights: Mapping[str, Tensor]) -> Values:
    """Move gains and biases off 1 and 0, so that no two tensors are the same."""
    return {
        name: value + 0.1 * noise(f"{name} moved", tuple(value.shape))
        if value.numel() <= max(value.shape)
        else value
        for name, value in weights.items()
    }
