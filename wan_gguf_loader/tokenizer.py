"""The sentencepiece model inside a UMT5 text encoder's file.

Safetensors files of ComfyUI's packaging hold it as the tensor `spiece_model`. llama.cpp writes its
parts into the GGUF metadata; they are put back into the protocol buffer `sentencepiece_model.proto`
by hand (four messages, six field types), so that no protobuf runtime is needed.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from typing import Any

from .errors import GGUFError
from .files import WeightsFile

_TENSOR = "spiece_model"
_UNIGRAM = 1  # kind of model
_BYTE_PIECE = 6  # kind of piece
_VARINT, _BYTES, _FLOAT = 0, 2, 5  # wire types


def tokenizer_model(file: WeightsFile) -> bytes:
    """Give the serialised sentencepiece model of a text encoder.

    Raises:
        GGUFError: If the file has none, or a damaged one.
    """
    if file.format == "gguf":
        return _from_metadata(file)
    if _TENSOR not in file.tensors:
        raise GGUFError(
            f"there is no tokenizer in this file (no tensor {_TENSOR!r}). Get "
            "umt5_xxl_fp16.safetensors from "
            "https://huggingface.co/Comfy-Org/Wan_2.1_ComfyUI_repackaged.",
            path=file.path,
        )
    return file.read(_TENSOR).numpy().tobytes()


def _from_metadata(file: WeightsFile) -> bytes:
    metadata: Mapping[str, Any] = file.metadata
    if metadata.get("tokenizer.ggml.model") != "t5" or not metadata.get("tokenizer.ggml.tokens"):
        raise GGUFError(
            "there is no sentencepiece tokenizer in the metadata. Take a GGUF of "
            "https://huggingface.co/city96/umt5-xxl-encoder-gguf, or a safetensors file.",
            path=file.path,
        )
    try:
        pieces, scores, types = (
            metadata[f"tokenizer.ggml.{key}"] for key in ("tokens", "scores", "token_type")
        )
        model = b"".join(
            _field(1, _field(1, piece.encode()) + _float(2, score) + _number(3, kind))
            for piece, score, kind in zip(pieces, scores, types, strict=True)
        )
        model += _field(2, _trainer(metadata, byte_fallback=_BYTE_PIECE in types))
        return model + _field(3, _normalizer(metadata))
    except (KeyError, TypeError, ValueError, AttributeError, struct.error) as reason:
        raise GGUFError(
            f"the tokenizer in the metadata is damaged ({reason}). Download the file again.",
            path=file.path,
        ) from reason


def _trainer(metadata: Mapping[str, Any], *, byte_fallback: bool) -> bytes:
    ids = {
        40: metadata.get("tokenizer.ggml.unknown_token_id", 2),
        41: metadata.get("tokenizer.ggml.bos_token_id", -1),
        42: metadata.get("tokenizer.ggml.eos_token_id", 1),
        43: metadata.get("tokenizer.ggml.padding_token_id", 0),
    }
    spec = _number(3, _UNIGRAM) + _number(35, int(byte_fallback))
    return spec + b"".join(_number(number, int(value)) for number, value in ids.items())


def _normalizer(metadata: Mapping[str, Any]) -> bytes:
    charsmap = bytes(
        value & 0xFF for value in metadata.get("tokenizer.ggml.precompiled_charsmap", ())
    )
    spec = _field(2, charsmap) if charsmap else b""
    spec += _number(3, int(metadata.get("tokenizer.ggml.add_space_prefix", True)))
    return spec + _number(4, int(metadata.get("tokenizer.ggml.remove_extra_whitespaces", True)))


def _field(number: int, payload: bytes) -> bytes:
    return _varint(number << 3 | _BYTES) + _varint(len(payload)) + payload


def _number(number: int, value: int) -> bytes:
    return _varint(number << 3 | _VARINT) + _varint(value & 0xFFFFFFFFFFFFFFFF)


def _float(number: int, value: float) -> bytes:
    return _varint(number << 3 | _FLOAT) + struct.pack("<f", value)


def _varint(value: int) -> bytes:
    encoded = bytearray()
    while value > 0x7F:
        encoded.append(value & 0x7F | 0x80)
        value >>= 7
    encoded.append(value)
    return bytes(encoded)
