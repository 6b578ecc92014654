"""UMT5 in every spelling and form, with its tokenizer where the packaging has it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Final

import sentencepiece
import torch
from torch import Tensor

from . import gguf_file, values
from .codecs import E4M3, Codec, comfy, plain, scaled, with_descriptions
from .files import Loads, Refused, Variant, Written
from .safetensors_rows import BRAIN, DTYPES, HALF, Build, one_file, sharded
from .spellings import llama_umt5, wan_umt5
from .stored import Stored, encode, is_matrix, save_shards

SCALED = scaled(E4M3, ".scale_weight")
FORMATS = ("float8_e4m3fn", "int8_tensorwise", "mxfp8", "nvfp4")
_FAMILY: Final = "text_encoder"
_BESIDE = "spiece.model"
_LATER_BIAS = "encoder.block.1.layer.0.SelfAttention.relative_attention_bias.weight"
_MARKER = {"scaled_fp8": torch.zeros(0, dtype=E4M3)}


def released(codec: Codec, *, rest: torch.dtype = HALF, every: bool = False) -> Stored:
    """Store UMT5 as ComfyUI's files do: `transformers`' names, the tokenizer as a tensor."""
    return _without_tokenizer(codec, rest=rest, every=every).plus(spiece_model=tokenizer())


def tokenizer() -> Tensor:
    """Give the tokenizer as a tensor of bytes."""
    return torch.frombuffer(bytearray(values.tokenizer()), dtype=torch.uint8)


def rows() -> Iterator[Variant]:
    """Give all variants."""
    for name, build in _comfyui().items():
        yield one_file(_FAMILY, name, build)
    yield from _originals()
    yield sharded(
        _FAMILY,
        "`transformers` in three shards, folder chosen",
        lambda: released(plain(BRAIN)),
        lambda paths: paths[0].parent,
    )
    yield from _folders()
    yield from _in_gguf()
    refused: dict[str, tuple[str, Build]] = {
        "T5 v1.1 (one position bias)": ("T5 text encoder, not UMT5", _t5),
        "scale of an unknown name": ("no known use", lambda: released(scaled(E4M3, ".scaling"))),
    }
    for name, (words, build) in refused.items():
        yield one_file(_FAMILY, name, build, outcome=Refused(words))


def _comfyui() -> dict[str, Build]:
    found: dict[str, Build] = {
        f"Comfy-Org {name}": lambda d=dtype: released(plain(d), rest=d)
        for name, dtype in DTYPES.items()
    }
    inputs = scaled(E4M3, ".scale_weight", others={".scale_input": torch.ones(())})
    found |= {
        "Comfy-Org `fp8_e4m3fn_scaled`": lambda: released(inputs).plus(**_MARKER),
        "scaled fp8 without marker": lambda: released(SCALED),
        "plain fp8 e4m3": lambda: released(plain(E4M3)),
        "prefix `text_encoder.`": lambda: released(plain(HALF)).prefixed("text_encoder."),
        "embedding stored twice": _tied,
        "in a checkpoint beside the base": _checkpoint,
        "scaled fp8 of every matrix": lambda: released(SCALED, every=True),
    }
    for format in FORMATS:
        codec = comfy(format)
        found |= {
            f"`comfy_quant` {format}, in a tensor": lambda c=codec: released(with_descriptions(c)),
            f"`comfy_quant` {format}, in the metadata": lambda c=codec: released(c),
        }
    return found


def _without_tokenizer(codec: Codec, *, rest: torch.dtype = HALF, every: bool = False) -> Stored:
    def is_layer(name: str, value: Tensor) -> bool:
        layer = "SelfAttention." in name or "DenseReluDense." in name
        return is_matrix(name, value) and (every or (layer and "bias" not in name))

    stored = encode(values.umt5(), codec, layers=is_layer, rest=rest)
    return stored._replace(values={**stored.values, values.TOKENS: values.prompt_tokens()})


def _tied() -> Stored:
    stored = released(plain(HALF))
    return stored.plus(**{"encoder.embed_tokens.weight": stored.tensors["shared.weight"]})


def _checkpoint() -> Stored:
    """Store what ComfyUI's Save Checkpoint writes."""
    own = released(plain(HALF))
    base = encode(values.base(), plain(HALF)).prefixed("model.diffusion_model.")
    joined = base.joined(own.renamed(_in_checkpoint))
    return joined._replace(values=own.values)


def _in_checkpoint(name: str) -> str:
    place = "" if name == "spiece_model" else "transformer."
    return f"text_encoders.umt5xxl.{place}{name}"


def _t5() -> Stored:
    stored = released(plain(HALF))
    tensors = {name: tensor for name, tensor in stored.tensors.items() if name != _LATER_BIAS}
    return stored._replace(tensors=tensors)


def _originals() -> Iterator[Variant]:
    """Files without a tokenizer, under Wan's names or `transformers`'."""
    for name, codec in {"bf16": plain(BRAIN), "fp8": plain(E4M3), "scaled fp8": SCALED}.items():
        yield _tokenizerless(
            f"Wan's original names, {name}, tokenizer beside it",
            lambda c=codec: _without_tokenizer(c, rest=BRAIN).renamed(wan_umt5),
            beside=True,
        )
    yield _tokenizerless(
        "Wan's original names, no tokenizer",
        lambda: _without_tokenizer(plain(BRAIN)).renamed(wan_umt5),
        beside=False,
    )
    yield _tokenizerless(
        "`transformers`' names, tokenizer beside it",
        lambda: _without_tokenizer(plain(HALF)),
        beside=True,
    )


def _folders() -> Iterator[Variant]:
    """Folders of whole models, which keep the tokenizer in a folder of its own."""

    def diffusers(folder: Path) -> Written:
        own = folder / "text_encoder"
        for place in (own, folder / "tokenizer"):
            place.mkdir()
        (folder / "tokenizer" / _BESIDE).write_bytes(values.tokenizer())
        stored = _without_tokenizer(plain(BRAIN))
        save_shards(stored, own, stem="model", count=3, index=True)
        return Written(own, Loads(stored.values))

    def official(folder: Path) -> Written:
        place = folder / "google" / "umt5-xxl"
        place.mkdir(parents=True)
        (place / _BESIDE).write_bytes(values.tokenizer())
        stored = _without_tokenizer(plain(BRAIN)).renamed(wan_umt5)
        return stored.save(folder / "models_t5_umt5-xxl-enc-bf16.safetensors")

    yield Variant(_FAMILY, "diffusers' folder, tokenizer in `../tokenizer`", diffusers)
    yield Variant(_FAMILY, "Wan's folder, tokenizer in `google/umt5-xxl`", official)


def _tokenizerless(name: str, build: Build, *, beside: bool) -> Variant:
    def written(folder: Path) -> Written:
        if beside:
            (folder / _BESIDE).write_bytes(values.tokenizer())
        path, loads = build().save(folder / "umt5-xxl-enc.safetensors")
        return Written(path, loads if beside else Refused("tokenizer.*spiece.model"))

    return Variant(_FAMILY, name, written)


def _in_gguf() -> Iterator[Variant]:
    for type in ("Q8_0", "Q6_K", "Q5_K", "Q4_K", "Q3_K", "F16", "BF16", "F32"):
        yield _gguf(f"city96 GGUF {type}", type, llama_umt5, vocabulary=True)
    yield _gguf("GGUF with `spiece_model`, `transformers`' names", "Q8_0", str, tensor=True)
    yield _gguf("GGUF with `spiece_model`, llama.cpp's names", "Q8_0", llama_umt5, tensor=True)
    yield _gguf("GGUF, tokenizer beside it", "Q8_0", llama_umt5, beside=True)


def _gguf(
    name: str,
    type: str,
    spell: Callable[[str], str],
    *,
    vocabulary: bool = False,
    tensor: bool = False,
    beside: bool = False,
) -> Variant:
    """Describe a GGUF with its tokenizer in the metadata, in a tensor, or beside it."""

    def written(folder: Path) -> Written:
        tensors, decoded = {}, {values.TOKENS: values.prompt_tokens()}
        for own, value in values.umt5().items():
            small = value.ndim == 1 or "bias" in own
            packed = gguf_file.pack(own, value, "F32" if small else type)
            tensors[spell(own)], decoded[own] = packed, packed.value
        if tensor:
            tensors["spiece_model"] = gguf_file.raw(tokenizer(), "I8")
        if beside:
            (folder / _BESIDE).write_bytes(values.tokenizer())
        metadata = {"general.architecture": "t5encoder", **(_vocabulary() if vocabulary else {})}
        path = gguf_file.write(folder / f"umt5-{type}.gguf", tensors, metadata)
        return Written(path, Loads(decoded))

    return Variant(_FAMILY, name, written)


def _vocabulary() -> Mapping[str, object]:
    pieces = sentencepiece.SentencePieceProcessor(model_proto=values.tokenizer())
    every = range(pieces.get_piece_size())
    kinds = {"is_unknown": 2, "is_control": 3, "is_unused": 5, "is_byte": 6}
    types = [next((k for n, k in kinds.items() if getattr(pieces, n)(i)), 1) for i in every]
    return {
        "tokenizer.ggml.model": "t5",
        "tokenizer.ggml.tokens": [pieces.id_to_piece(i) for i in every],
        "tokenizer.ggml.scores": [float(pieces.get_score(i)) for i in every],
        "tokenizer.ggml.token_type": types,
        "tokenizer.ggml.eos_token_id": pieces.eos_id(),
        "tokenizer.ggml.unknown_token_id": pieces.unk_id(),
        "tokenizer.ggml.padding_token_id": pieces.pad_id(),
    }
