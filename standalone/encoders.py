"""Text and image encoders of the command: plain `transformers` classes, sizes from shapes.

UMT5 encodes the prompt as text tokens, the CLIP vision tower (ViT-H/14) a picture as image tokens.
Follows MultiTalk `wan/modules/{t5,tokenizers,clip}.py`. Departures: prompts are not repaired by
ftfy, and not padded to 512 tokens under a mask, which gives the same rows as the prompt alone.
"""

from __future__ import annotations

import html
import logging
import re
from dataclasses import asdict

import torch
from sentencepiece import SentencePieceProcessor
from torch import Tensor, nn
from transformers import CLIPVisionConfig, CLIPVisionModel, UMT5Config, UMT5EncoderModel

from ..multitalk_core.errors import WeightsError
from ..multitalk_core.files.sizes import clip_sizes, umt5_sizes
from ..multitalk_core.inputs.photo import resize_for_clip
from ..wan_gguf_loader.files import WeightsFile
from ..wan_gguf_loader.tokenizer import tokenizer_model
from .borrowed import fill, on_device

_log = logging.getLogger(__name__)

TEXT_LEN = 512
"""Tokens of the longest prompt, the end mark included."""

_CLIP_PIXELS = 224
_PREFIX = "vision_model."
_SPACES = re.compile(r"\s+")


class TextEncoder:
    """UMT5 with its tokenizer; on `device` only while it encodes."""

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
    """CLIP's vision tower as an `ImageEncoder`; on `device` only while it encodes."""

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
    """Build UMT5 from a file with its tokenizer inside or beside it (`tokenizer.py`).

    Args:
        file: An open text encoder of any size.
        device: Where it computes; between uses it lies in main memory.
        dtype: Type it computes in; float16 overflows in T5 models.
        streamed: Whether its blocks are moved to the device one by one, for a card that it does
            not fit on.

    Raises:
        WeightsError: If the file is no UMT5 encoder.
        GGUFError: If there is no tokenizer, or it does not belong to the file.
    """
    sizes = umt5_sizes(file.shapes, source=file.path.name)
    tokenizer = _load_tokenizer(file)
    with torch.device("meta"):
        model = UMT5EncoderModel(UMT5Config(**asdict(sizes)))
    names = {name: name for name in model.state_dict()}
    names["encoder.embed_tokens.weight"] = "shared.weight"
    fill(model, file, names=names, dtype=dtype)
    model.tie_weights()
    return TextEncoder(model, tokenizer, device=device, streamed=streamed)


def load_image_encoder(
    file: WeightsFile, *, device: torch.device, dtype: torch.dtype
) -> VisionEncoder:
    """Build CLIP's vision tower.

    Args:
        file: An open CLIP vision file of any width, for pictures of 224x224 pixels. The final norm,
            which Wan2.1 does not use, may be missing.
        device: Where it computes; between uses it lies in main memory.
        dtype: Type it computes in.

    Raises:
        WeightsError: If the file is no CLIP vision tower, or one for another picture size.
    """
    sizes = clip_sizes(file.shapes, num_heads=file.num_heads, source=file.path.name)
    if sizes.image_size != _CLIP_PIXELS:
        raise WeightsError(
            f"{file.path.name} is a CLIP vision tower for pictures of {sizes.image_size} pixels; "
            f"Wan2.1 needs one for {_CLIP_PIXELS}. Get clip_vision_h.safetensors."
        )
    with torch.device("meta"):
        model = CLIPVisionModel(CLIPVisionConfig(**asdict(sizes), hidden_act="gelu"))
    tower = getattr(model, "vision_model", model)
    if f"{_PREFIX}post_layernorm.weight" not in file.tensors:
        tower.post_layernorm = nn.Identity()
    # transformers 5 leaves the files' prefix out of the class, 4 has it there too
    names = {name: _PREFIX + name.removeprefix(_PREFIX) for name in model.state_dict()}
    fill(model, file, names=names, dtype=dtype)
    embeddings = tower.embeddings
    embeddings.position_ids = torch.arange(embeddings.num_positions)[None]  # a buffer no file holds
    return VisionEncoder(model, device=device)


def _load_tokenizer(file: WeightsFile) -> SentencePieceProcessor:
    proto = tokenizer_model(file)
    tokenizer = SentencePieceProcessor()
    try:
        tokenizer.LoadFromSerializedProto(proto)
    except RuntimeError as reason:
        raise WeightsError(
            f"{file.path.name}: the tokenizer ({len(proto)} bytes) cannot be read. "
            "Download it again."
        ) from reason
    return tokenizer
