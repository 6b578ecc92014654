"""The borrowed encoders (voice, text, photo): real `transformers` classes at toy size."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path

import sentencepiece
import torch
from torch import Tensor
from transformers import (
    CLIPVisionConfig,
    CLIPVisionModelWithProjection,
    UMT5Config,
    UMT5EncoderModel,
    Wav2Vec2Config,
    Wav2Vec2Model,
)

from .fill import fill, meta_shapes
from .wan import CONFIG

NUM_HEADS = 4
"""Of all three encoders; the shapes cannot tell, so the files carry it."""
CLIP_DEVIATIONS = {"class_embedding": 0.5, "position_embedding.weight": 0.5}
"""Standard deviations that differ from the rule of `fill`."""
_SENTENCES = Path(__file__).with_name("sentences.txt")
_NUM_PIECES = 800


def wav2vec2(*, seed: int) -> dict[str, Tensor]:
    """Draw a Wav2Vec2 of 12 layers x 32, under the names of the released chinese-wav2vec2-base."""
    if CONFIG.audio is None:
        raise ValueError("The tiny transformer must have an audio branch.")
    config = Wav2Vec2Config(
        hidden_size=CONFIG.audio.channels,
        num_hidden_layers=CONFIG.audio.layers,
        num_attention_heads=NUM_HEADS,
        intermediate_size=64,
        conv_dim=(32,) * 7,  # strides and kernels stay those of the real one: 50 features a second
    )
    return fill(wav2vec2_shapes(config), seed=seed, std={"masked_spec_embed": 0.1})


def wav2vec2_shapes(config: Wav2Vec2Config) -> dict[str, tuple[int, ...]]:
    """Give the tensors of a file like the released chinese-wav2vec2-base, of any sizes."""
    with torch.device("meta"):
        shapes = meta_shapes(Wav2Vec2Model(config))
    conv = "encoder.pos_conv_embed.conv"
    released = {  # as weight norm was called when the file was made
        f"{conv}.parametrizations.weight.original0": f"{conv}.weight_g",
        f"{conv}.parametrizations.weight.original1": f"{conv}.weight_v",
    }
    return {f"wav2vec2.{released.get(name, name)}": shape for name, shape in shapes.items()}


def umt5(*, seed: int) -> dict[str, Tensor]:
    """Draw a UMT5 encoder with its tokenizer inside, as ComfyUI's files have it."""
    tokenizer = sentencepiece_model(page(), num_pieces=_NUM_PIECES)
    pieces = sentencepiece.SentencePieceProcessor(model_proto=tokenizer)
    config = UMT5Config(
        vocab_size=pieces.get_piece_size(),
        d_model=CONFIG.text_dim,
        d_kv=16,
        d_ff=128,
        num_layers=2,
        num_heads=NUM_HEADS,
        feed_forward_proj="gated-gelu",
    )
    weights = fill(umt5_shapes(config), seed=seed, std=umt5_deviations(config))
    weights["spiece_model"] = torch.frombuffer(bytearray(tokenizer), dtype=torch.uint8)
    return weights


def umt5_shapes(config: UMT5Config) -> dict[str, tuple[int, ...]]:
    """Give the tensors of a UMT5 encoder's file, but for the tokenizer."""
    with torch.device("meta"):
        shapes = meta_shapes(UMT5EncoderModel(config))
    shapes.pop("encoder.embed_tokens.weight", None)  # tied to `shared`
    return shapes


def umt5_deviations(config: UMT5Config) -> dict[str, float]:
    """Give the standard deviations that differ from the rule of `fill`."""
    return {
        "shared.weight": 1.0,
        "relative_attention_bias.weight": 0.1,
        # T5 does not divide by the root of the head width; its query weights do.
        "SelfAttention.q.weight": (config.d_model * config.d_kv) ** -0.5,
    }


def clip_vision(*, seed: int) -> dict[str, Tensor]:
    """Draw a CLIP vision tower of width 64: 224 pixels, patches of 14, as the real ViT-H."""
    config = CLIPVisionConfig(
        hidden_size=CONFIG.image_dim,
        intermediate_size=128,
        projection_dim=CONFIG.image_dim,
        num_hidden_layers=3,
        num_attention_heads=NUM_HEADS,
        image_size=224,
        patch_size=14,
        hidden_act="gelu",
    )
    return fill(clip_vision_shapes(config), seed=seed, std=CLIP_DEVIATIONS)


def clip_vision_shapes(config: CLIPVisionConfig) -> dict[str, tuple[int, ...]]:
    """Give the tensors of a CLIP vision tower's file."""
    with torch.device("meta"):
        return meta_shapes(CLIPVisionModelWithProjection(config))


def page() -> list[str]:
    """Give a page of our own text, by sentences."""
    return _SENTENCES.read_text(encoding="utf-8").splitlines()


def sentencepiece_model(sentences: Sequence[str], *, num_pieces: int) -> bytes:
    """Train a tokenizer with UMT5's special ids.

    Args:
        sentences: To train on.
        num_pieces: At most; 256 of them are bytes, so any script can be written.
    """
    written = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(sentences),
        model_writer=written,
        model_type="unigram",
        vocab_size=num_pieces,
        hard_vocab_limit=False,
        byte_fallback=True,
        character_coverage=1.0,
        pad_id=0,
        eos_id=1,
        unk_id=2,
        bos_id=-1,
        num_threads=1,
        minloglevel=2,
    )
    return written.getvalue()
