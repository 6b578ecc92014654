"""Weights files of any size with random content, written as a stream, for `smoke_14b`.

Names, shapes and formats are those of the released files. One pool of random numbers is read again
and again from changing offsets, so that 14 GB take tens of seconds and little memory. Matrices have
variance 1 / fan-in, so that activations stay of order one.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path

import torch
from diffusers import AutoencoderKLWan
from torch import Tensor
from transformers import CLIPVisionConfig, UMT5Config, Wav2Vec2Config

from ...multitalk_core.config import AudioConfig, ModelConfig
from ...multitalk_core.model.dit import MultiTalkModel
from ...standalone.vae import original_name
from ...tools.convert import choose_type
from ...tools.gguf_writer import Entry, write_gguf
from ..make_tiny import TinySet
from ..tiny import encoders, wan
from ..tiny.fill import meta_shapes, moments

Shapes = Mapping[str, tuple[int, ...]]

_POOL = 1 << 24  # values; 64 MiB in float32
_Q4_K = 144  # bytes of a block of 256 weights: two float16 scales, 12 bytes of 6-bit ones, 4-bit
_Q4_K_STD = 258.0  # of a block with scale 1, minimum scale 7.5 and random bytes: mean 0
_Q4_K_MIN = 7.5
_PLAIN = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
_DTYPE_NAMES = {dtype: name for name, dtype in _PLAIN.items()} | {torch.uint8: "U8"}
_STD = {
    **wan.STD,
    "decoder.head.2.weight": 0.03,
    "masked_spec_embed": 0.1,
}


@dataclass(frozen=True, kw_only=True, slots=True)
class Sizes:
    """Sizes of all models; the head counts go into the files."""

    transformer: ModelConfig
    vae_dim: int
    wav2vec2: Wav2Vec2Config
    umt5: UMT5Config
    clip_vision: CLIPVisionConfig


def full_sizes() -> Sizes:
    """Give the released sizes (Wan2.1-I2V-14B), but two of UMT5's 24 layers and few of its words.

    They are used once and then leave the card, so they would only take disk.
    """
    return Sizes(
        transformer=ModelConfig(audio=AudioConfig()),
        vae_dim=96,
        wav2vec2=Wav2Vec2Config(),
        umt5=_umt5(width=4096, head_width=64, hidden=10240, heads=64),
        clip_vision=_clip(width=1280, hidden=5120, layers=32, heads=16),
    )


def small_sizes() -> Sizes:
    """Give sizes that run in seconds on a CPU."""
    audio = AudioConfig(layers=12, channels=32, hidden_dim=64, num_tokens=8, token_dim=256)
    transformer = ModelConfig(
        dim=256, ffn_dim=512, num_heads=4, num_layers=2, text_dim=64, image_dim=64, audio=audio
    )
    voice = Wav2Vec2Config(
        hidden_size=32, num_attention_heads=4, intermediate_size=64, conv_dim=(32,) * 7
    )
    return Sizes(
        transformer=transformer,
        vae_dim=8,
        wav2vec2=voice,
        umt5=_umt5(width=64, head_width=16, hidden=128, heads=4),
        clip_vision=_clip(width=64, hidden=128, layers=3, heads=4),
    )


def write_files(folder: Path, sizes: Sizes, *, seed: int) -> TinySet:
    """Write the files of one video; there is no LoRA."""
    files = TinySet(folder)
    pool = RandomPool(seed)
    transformer = meta_shapes(MultiTalkModel(sizes.transformer, device="meta"))
    base = {name: shape for name, shape in transformer.items() if not wan.is_audio(name)}
    adapter = {name: shape for name, shape in transformer.items() if name not in base}
    _write_base(files.base, base, pool, num_heads=sizes.transformer.num_heads)
    pool.write(files.adapter, adapter, dtype=torch.bfloat16)
    with torch.device("meta"):
        vae = meta_shapes(AutoencoderKLWan(base_dim=sizes.vae_dim, z_dim=16))
    vae = {original_name(name): shape for name, shape in vae.items()}
    pool.write(files.vae, vae, dtype=torch.bfloat16)
    pool.write(
        files.wav2vec2,
        encoders.wav2vec2_shapes(sizes.wav2vec2),
        dtype=torch.float16,
        num_heads=sizes.wav2vec2.num_attention_heads,
    )
    pool.write(
        files.clip_vision,
        encoders.clip_vision_shapes(sizes.clip_vision),
        dtype=torch.float16,
        std=encoders.CLIP_DEVIATIONS,
        num_heads=sizes.clip_vision.num_attention_heads,
    )
    tokenizer = encoders.sentencepiece_model(encoders.page(), num_pieces=sizes.umt5.vocab_size)
    pool.write(
        files.text_encoder,
        encoders.umt5_shapes(sizes.umt5),
        dtype=torch.float16,
        std=encoders.umt5_deviations(sizes.umt5),
        num_heads=sizes.umt5.num_heads,
        extra={"spiece_model": torch.frombuffer(bytearray(tokenizer), dtype=torch.uint8)},
    )
    return files


class RandomPool:
    """Normal numbers and random bytes, cut from one pool at random offsets."""

    def __init__(self, seed: int) -> None:
        self._generator = torch.Generator().manual_seed(seed)
        self._normal = torch.randn(_POOL, generator=self._generator)
        self._bytes = torch.randint(
            256, (_POOL // 64, _Q4_K), dtype=torch.uint8, generator=self._generator
        )

    def plain(self, name: str, shape: tuple[int, ...], *, std: Mapping[str, float]) -> Tensor:
        """Give float32 values by the rule of `dev.tiny.fill`."""
        mean, deviation = moments(name, shape, std=_STD | dict(std))
        return (self._cut(self._normal, prod(shape)) * deviation + mean).view(shape)

    def packed(self, name: str, shape: tuple[int, ...]) -> Tensor:
        """Give Q4_K rows of random bytes, `(rows, row_bytes)`, by the same rule."""
        mean, deviation = moments(name, shape, std=_STD)
        assert mean == 0
        blocks = self._cut(self._bytes, prod(shape) // 256)
        scale = deviation / _Q4_K_STD
        scales = torch.tensor([scale, scale * _Q4_K_MIN], dtype=torch.float16)
        blocks[:, :4] = scales.view(torch.uint8)
        return blocks.view(shape[0], -1)

    def write(
        self,
        path: Path,
        shapes: Shapes,
        *,
        dtype: torch.dtype,
        std: Mapping[str, float] | None = None,
        num_heads: int | None = None,
        extra: Mapping[str, Tensor] | None = None,
    ) -> None:
        """Write a safetensors file, one tensor in memory at a time."""
        extra = extra or {}
        plan = {name: (dtype, shape) for name, shape in shapes.items()}
        plan |= {name: (value.dtype, tuple(value.shape)) for name, value in extra.items()}
        drawn = (self.plain(name, shape, std=std or {}).to(dtype) for name, shape in shapes.items())
        metadata = {"format": "pt"} if num_heads is None else {"num_heads": str(num_heads)}
        write_safetensors(path, plan, _chain(drawn, extra.values()), metadata=metadata)

    def _cut(self, supply: Tensor, count: int) -> Tensor:
        """Copy `count` rows of the pool from a random offset."""
        start = int(torch.randint(len(supply), (), generator=self._generator))
        parts = [supply[start : start + count]]
        while (missing := count - sum(map(len, parts))) > 0:
            parts.append(supply[:missing])
        return torch.cat(parts)


def write_safetensors(
    path: Path,
    plan: Mapping[str, tuple[torch.dtype, tuple[int, ...]]],
    payloads: Iterable[Tensor],
    *,
    metadata: Mapping[str, str],
) -> None:
    """Write tensors one after another; `safetensors` itself needs all of them at once."""
    header: dict[str, object] = {"__metadata__": dict(metadata)}
    stop = 0
    for name, (dtype, shape) in plan.items():
        start, stop = stop, stop + prod(shape) * dtype.itemsize
        name_of_dtype = _DTYPE_NAMES[dtype]
        header[name] = {"dtype": name_of_dtype, "shape": shape, "data_offsets": [start, stop]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for payload in payloads:
            file.write(payload.contiguous().reshape(-1).view(torch.uint8).numpy().data)


def _write_base(path: Path, shapes: Shapes, pool: RandomPool, *, num_heads: int) -> None:
    entries = [
        Entry(name, shape, choose_type(name, shape, stored="F32", type="Q4_K"))
        for name, shape in shapes.items()
    ]

    def payload(entry: Entry) -> Tensor:
        if entry.type == "Q4_K":
            return pool.packed(entry.name, entry.shape)
        return pool.plain(entry.name, entry.shape, std={}).to(_PLAIN[entry.type])

    metadata = {"general.architecture": "wan", "wan.attention.head_count": num_heads}
    write_gguf(path, entries, map(payload, entries), metadata=metadata)


def _chain(*parts: Iterable[Tensor]) -> Iterator[Tensor]:
    for part in parts:
        yield from part


def _umt5(*, width: int, head_width: int, hidden: int, heads: int) -> UMT5Config:
    return UMT5Config(
        vocab_size=1024,  # the tokenizer has as many pieces at most
        d_model=width,
        d_kv=head_width,
        d_ff=hidden,
        num_layers=2,
        num_heads=heads,
        feed_forward_proj="gated-gelu",
    )


def _clip(*, width: int, hidden: int, layers: int, heads: int) -> CLIPVisionConfig:
    return CLIPVisionConfig(
        hidden_size=width,
        intermediate_size=hidden,
        projection_dim=width,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        image_size=224,
        patch_size=14,
        hidden_act="gelu",
    )
