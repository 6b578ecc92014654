"""The sentencepiece model of a UMT5 text encoder: inside its file, or in a file beside it.

ComfyUI's packaging holds it as the tensor `spiece_model`. llama.cpp writes its parts into the GGUF
metadata; they are put back into the protocol buffer `sentencepiece_model.proto` by hand (four
messages, six field types), so that no protobuf runtime is needed. Files in Wan's own names and
those of `transformers` have it beside them.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch

from .errors import GGUFError
from .files import WeightsFile
from .source import Source
from .types import PLAIN_DTYPES

_TENSOR = "spiece_model"
_BESIDE = (
    "spiece.model",
    "tokenizer/spiece.model",
    "../tokenizer/spiece.model",
    "google/umt5-xxl/spiece.model",
    "tokenizer.model",
)
"""Where downloads keep it, from the folder of the weights; the first that exists is read."""
_MAX_BYTES = 64 << 20
_PADDING = 512
"""More rows than this without a piece, and the tokenizer is of another model."""
_EMBEDDING = "shared.weight"
_UNIGRAM = 1  # kind of model
_BYTE_PIECE = 6  # kind of piece
_VARINT, _BYTES, _FLOAT = 0, 2, 5  # wire types
_PIECES = 1  # field of the model


def tokenizer_model(file: WeightsFile) -> bytes:
    """Give the serialised sentencepiece model of a text encoder.

    Raises:
        GGUFError: If there is none, it is damaged, or belongs to another text encoder.
    """
    stored = next((name for name in file.tensors if name.split(".")[-1] == _TENSOR), None)
    if stored is not None:
        return _checked(_from_tensor(file, stored), file, path=file.path, beside=False)
    if file.metadata.get("tokenizer.ggml.tokens"):
        return _checked(_from_metadata(file), file, path=file.path, beside=False)
    folder = file.path if file.path.is_dir() else file.path.parent
    path = next((folder / name for name in _BESIDE if (folder / name).is_file()), None)
    if path is None:
        raise GGUFError(
            "there is no tokenizer in this file and none beside it. Put spiece.model of "
            f"https://huggingface.co/google/umt5-xxl into {folder}, or get a text encoder with its "
            "tokenizer inside, such as umt5_xxl_fp16.safetensors of "
            "https://huggingface.co/Comfy-Org/Wan_2.1_ComfyUI_repackaged.",
            path=file.path,
        )
    source = Source(path)
    model = source.read(0, min(source.size, _MAX_BYTES))
    return _checked(model, file, path=path, beside=True)


def _from_tensor(file: WeightsFile, name: str) -> bytes:
    """Read the bytes, which some converters to GGUF store as numbers of another type."""
    if file.tensors[name].type not in PLAIN_DTYPES:
        raise GGUFError(
            f"the tokenizer inside (tensor {name!r}) was quantised to {file.tensors[name].type}, "
            "which destroys it. Get another file of this model.",
            path=file.path,
        )
    data = file.read(name)
    if data.dtype.itemsize > 1:
        data = data.to(torch.uint8)
    return data.view(torch.uint8).numpy().tobytes()


def _checked(model: bytes, file: WeightsFile, *, path: Path, beside: bool) -> bytes:
    """Compare the number of pieces with the rows of the embedding.

    Raises:
        GGUFError: If the model cannot be read, or does not belong to the text encoder.
    """
    try:
        pieces = sum(field == _PIECES for field in _fields(model))
    except (IndexError, ValueError) as reason:
        raise GGUFError(
            f"the tokenizer inside ({len(model)} bytes) cannot be read. Download the file again.",
            path=path,
        ) from reason
    shape = file.tensors[_EMBEDDING].shape if _EMBEDDING in file.tensors else ()
    rows = shape[0] if shape else 0
    if pieces > rows or (beside and rows - pieces >= _PADDING):
        raise GGUFError(
            f"the tokenizer has {pieces} pieces, but the text encoder {file.path.name} has "
            f"{rows} words. Use a tokenizer and a text encoder that belong together.",
            path=path,
        )
    return model


def _fields(message: bytes) -> Iterator[int]:
    """Give the number of each field of a message whose fields are all messages."""
    at = 0

    def varint() -> int:
        nonlocal at
        value = shift = 0
        while True:
            byte = message[at]
            at += 1
            value |= (byte & 0x7F) << shift
            shift += 7
            if byte < 0x80:
                return value
            if shift > 63:
                raise ValueError("a number is too long")

    while at < len(message):
        tag = varint()
        if tag & 7 != _BYTES:
            raise ValueError("a field is no message")
        length = varint()
        at += length
        yield tag >> 3
    if at > len(message):
        raise ValueError("the last field is cut short")


def _from_metadata(file: WeightsFile) -> bytes:
    metadata: Mapping[str, Any] = file.metadata
    if metadata.get("tokenizer.ggml.model") != "t5":
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
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError, struct.error) as reason:
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
