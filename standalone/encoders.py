"""Text and image encoders of the command: plain `transformers` classes, sizes from shapes.

UMT5 turns the prompt into text tokens, the CLIP vision tower (ViT-H/14) a picture into image
tokens. Follows MultiTalk `wan/modules/{t5,tokenizers,clip}.py`. Departures: prompts are not
repaired by ftfy, and not padded to 512 tokens under a mask, which gives the same rows as the
prompt alone.
"""

from __future__ import annotations

import html
import logging
import math
import re

import torch
from sentencepiece import SentencePieceProcessor
from torch import Tensor
from transformers import CLIPVisionConfig, CLIPVisionModel, UMT5Config, UMT5EncoderModel

from ..multitalk_core.errors import WeightsError
from ..multitalk_core.inputs.photo import resize_for_clip
from ..wan_gguf_loader.files import WeightsFile
from .borrowed import count_layers, fill, on_device

_log = logging.getLogger(__name__)

TEXT_LEN = 512
"""Tokens of the longest prompt, the end mark included."""

_CLIP_PIXELS = 224
_VIT_H = (1280, 16)
"""Width and heads of ViT-H, whose head width of 80 is the exception; elsewhere it is 64."""
_PREFIX = "vision_model."
_LAYERS = f"{_PREFIX}encoder.layers."
_TOKENIZER = "spiece_model"
_SPACES = re.compile(r"\s+")


class TextEncoder:
    """UMT5 with its tokenizer; visits `device` only while it encodes."""

    def __init__(
        self,
        model: UMT5EncoderModel,
        tokenizer: SentencePieceProcessor,
        *,
        device: torch.device,
        streamed: bool = False,
    ) -> None:
        self.model = model
        self._tokenizer = tokenizer
        self._device = device
        self._streamed = model.encoder.block if streamed else None

    @torch.no_grad()
    def encode(self, prompts: list[str]) -> list[Tensor]:
        """Turn each prompt into its text tokens `(1, L, D)`, float32 on the CPU, L <= 512."""
        with on_device(self.model, self._device, streamed=self._streamed):
            return [
                self.model(input_ids=self.tokenize(prompt).to(self._device))
                .last_hidden_state.float()
                .cpu()
                for prompt in prompts
            ]

    def tokenize(self, prompt: str) -> Tensor:
        """Give the token numbers of a prompt, `(1, L)`, cut to 512, the end mark last."""
        pieces = self._tokenizer.encode(clean_prompt(prompt))
        if len(pieces) >= TEXT_LEN:
            _log.warning(
                "The prompt %r... has %d tokens; the model reads %d.",
                prompt[:40],
                len(pieces) + 1,
                TEXT_LEN,
            )
        return torch.tensor([[*pieces[: TEXT_LEN - 1], self.model.config.eos_token_id]])


class VisionEncoder:
    """CLIP's vision tower as an `ImageEncoder`; visits `device` only while it encodes."""

    def __init__(self, model: CLIPVisionModel, *, device: torch.device) -> None:
        self.model = model
        self._device = device

    @torch.no_grad()
    def encode(self, image: Tensor) -> Tensor:
        """Turn a picture `(1, 3, H, W)` in [-1, 1] into `(1, 257, D)`, the last but one state."""
        with on_device(self.model, self._device):
            pixels = resize_for_clip(image.to(self._device)).to(self.model.dtype)
            states = self.model(pixel_values=pixels, output_hidden_states=True).hidden_states
            tokens: Tensor = states[-2]
            return tokens.float()


def clean_prompt(prompt: str) -> str:
    """Unescape HTML entities twice and collapse white space, as upstream does."""
    return _SPACES.sub(" ", html.unescape(html.unescape(prompt))).strip()


def load_text_encoder(
    file: WeightsFile, *, device: torch.device, dtype: torch.dtype, streamed: bool = False
) -> TextEncoder:
    """Build UMT5 from a file with `transformers`' tensor names and its tokenizer inside.

    Args:
        file: An open text encoder of any size.
        device: Where it computes; it rests in main memory.
        dtype: Type it computes in; float16 overflows in T5 models.
        streamed: Whether its blocks visit the device in turn, for a card it does not fit on.

    Raises:
        WeightsError: If the file is no UMT5 encoder, or lacks the tokenizer.
    """
    block = "encoder.block.0.layer"
    shapes = file.shapes
    needed = {
        "embedding": "shared.weight",
        "bias": f"{block}.0.SelfAttention.relative_attention_bias.weight",
        "query": f"{block}.0.SelfAttention.q.weight",
        "gate": f"{block}.1.DenseReluDense.wi_0.weight",
    }
    absent = [name for name in needed.values() if name not in shapes]
    if absent:
        raise WeightsError(
            f"{file.path.name} is no UMT5 encoder with the tensor names of transformers: it has "
            f"no {absent[0]!r}. Get umt5_xxl_fp16.safetensors."
        )
    vocab_size, d_model = shapes[needed["embedding"]]
    num_buckets, num_heads = shapes[needed["bias"]]
    config = UMT5Config(
        vocab_size=vocab_size,
        d_model=d_model,
        d_kv=shapes[needed["query"]][0] // num_heads,
        d_ff=shapes[needed["gate"]][0],
        num_layers=count_layers(file, "encoder.block."),
        num_heads=num_heads,
        relative_attention_num_buckets=num_buckets,
    )
    tokenizer = _load_tokenizer(file, vocab_size=vocab_size)
    with torch.device("meta"):
        model = UMT5EncoderModel(config)
    names = {name: name for name in model.state_dict()}
    names["encoder.embed_tokens.weight"] = "shared.weight"
    fill(model, file, names=names, dtype=dtype)
    model.tie_weights()
    return TextEncoder(model, tokenizer, device=device, streamed=streamed)


def load_image_encoder(
    file: WeightsFile, *, device: torch.device, dtype: torch.dtype
) -> VisionEncoder:
    """Build CLIP's vision tower from a file with `transformers`' tensor names.

    Args:
        file: An open CLIP vision file of any width, for pictures of 224x224 pixels.
        device: Where it computes; it rests in main memory.
        dtype: Type it computes in.

    Raises:
        WeightsError: If the file is no CLIP vision tower, or one for another picture size.
    """
    shapes = file.shapes
    needed = (
        f"{_PREFIX}embeddings.patch_embedding.weight",
        f"{_PREFIX}embeddings.position_embedding.weight",
        f"{_LAYERS}0.mlp.fc1.weight",
    )
    absent = [name for name in needed if name not in shapes]
    if absent:
        raise WeightsError(
            f"{file.path.name} is no CLIP vision tower with the tensor names of transformers: it "
            f"has no {absent[0]!r}. Get clip_vision_h.safetensors."
        )
    (hidden_size, _, patch_size, _), (num_positions, _), (intermediate_size, _) = (
        shapes[name] for name in needed
    )
    image_size = math.isqrt(num_positions - 1) * patch_size
    if image_size != _CLIP_PIXELS:
        raise WeightsError(
            f"{file.path.name} is a CLIP vision tower for pictures of {image_size} pixels; Wan2.1 "
            f"needs one for {_CLIP_PIXELS}. Get clip_vision_h.safetensors."
        )
    num_heads = file.num_heads or (_VIT_H[1] if hidden_size == _VIT_H[0] else hidden_size // 64)
    if not num_heads or hidden_size % num_heads:
        raise WeightsError(
            f"{file.path.name}: a width of {hidden_size} cannot be split into {num_heads} heads. "
            "Give the head count as 'num_heads' in the file's metadata."
        )
    config = CLIPVisionConfig(
        hidden_size=hidden_size,
        intermediate_size=intermediate_size,
        num_hidden_layers=count_layers(file, _LAYERS),
        num_attention_heads=num_heads,
        image_size=image_size,
        patch_size=patch_size,
        hidden_act="gelu",
    )
    with torch.device("meta"):
        model = CLIPVisionModel(config)
    # transformers 5 leaves the files' prefix out of the class, 4 has it there too
    names = {name: _PREFIX + name.removeprefix(_PREFIX) for name in model.state_dict()}
    fill(model, file, names=names, dtype=dtype)
    embeddings = getattr(model, "vision_model", model).embeddings
    embeddings.position_ids = torch.arange(num_positions)[None]  # a buffer no file holds
    return VisionEncoder(model, device=device)


def _load_tokenizer(file: WeightsFile, *, vocab_size: int) -> SentencePieceProcessor:
    if _TOKENIZER not in file.tensors:
        raise WeightsError(
            f"{file.path.name} has no tokenizer inside (no tensor {_TOKENIZER!r}). Get Comfy-Org's "
            "umt5_xxl_fp16.safetensors, which has one."
        )
    proto = file.read(_TOKENIZER).numpy().tobytes()
    tokenizer = SentencePieceProcessor()
    try:
        tokenizer.LoadFromSerializedProto(proto)
    except RuntimeError as reason:
        raise WeightsError(
            f"{file.path.name}: the tokenizer inside ({_TOKENIZER!r}, {len(proto)} bytes) cannot "
            "be read. Download the file again."
        ) from reason
    if tokenizer.get_piece_size() > vocab_size:
        raise WeightsError(
            f"{file.path.name}: the tokenizer inside knows {tokenizer.get_piece_size()} pieces, "
            f"the model only {vocab_size}. Get a file whose two parts belong together."
        )
    return tokenizer
