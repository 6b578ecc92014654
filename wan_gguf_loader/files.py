"""One interface for GGUF and safetensors weights files.

    with open_weights("wan2.1-i2v-14b-480p-Q4_K_M.gguf") as file:
        weight = file.dequantize("blocks.0.self_attn.q.weight", torch.bfloat16)

The content tells the format, not the file name. Opening reads only the header; each tensor is read
into its own memory.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple

import torch
from torch import Tensor

from . import reader, safetensors_header
from .dequant import PACKED_TYPES, dequantize
from .errors import GGUFError
from .names import check_complete, logical_shapes
from .namings import Part
from .rows import ROW_TYPES
from .shards import shard_paths
from .source import Source
from .types import PLAIN_DTYPES, TYPES_BY_NAME, Header
from .variant import Format, Place, Variant, describe

_HEAD_COUNT_KEY = "wan.attention.head_count"
_WEIGHT_TYPES = PACKED_TYPES | {n for n, dtype in PLAIN_DTYPES.items() if dtype.is_floating_point}
_LEAST_BYTES = {"gguf": 24, "safetensors": 10}
_WRONG_KINDS = (
    (b"version https://git-lfs", "a git-lfs pointer, not the weights. Run `git lfs pull`."),
    (b"FUGG", "a big-endian GGUF file. Convert it to little endian."),
    (b"lmgg", "a legacy GGML file. Get the model as GGUF version 2 or 3."),
    (b"fmgg", "a legacy GGMF file. Get the model as GGUF version 2 or 3."),
    (b"tjgg", "a legacy GGJT file. Get the model as GGUF version 2 or 3."),
    (b"algg", "a legacy GGLA file. Get the model as GGUF version 2 or 3."),
    (b"PK\x03\x04", "a PyTorch pickle checkpoint (or a zip). Convert it to safetensors."),
    (b"\x80", "a Python pickle, which can run code. Convert it to safetensors."),
    (b"\x1f\x8b", "a gzip archive. Unpack it."),
)


class TensorInfo(NamedTuple):
    """Description of a tensor, from the header.

    Attributes:
        name: The model's name, see `namings.py`.
        shape: Logical shape, torch order.
        type: Storage type of what `WeightsFile.read` gives: `"Q4_K"`, `"BF16"`, `"F8_E4M3_ROWS"`.
        nbytes: Bytes of what `WeightsFile.read` gives.
    """

    name: str
    shape: tuple[int, ...]
    type: str
    nbytes: int

    @property
    def num_elements(self) -> int:
        """Number of weights."""
        return math.prod(self.shape)


class WeightsFile:
    """An opened weights file, or the shards of one.

    Attributes:
        path: The file that was opened.
        variant: How the file stores the model.
        metadata: Values of the header; GGUF arrays are read on access and come as tuples.
        tensors: Tensors in file order, by the model's names.
    """

    def __init__(self, path: Path, variant: Variant, metadata: Mapping[str, object]) -> None:
        """Describe the tensors; use `open_weights`."""
        self.path = path
        self.variant = variant
        self.metadata = metadata
        self._closed = False
        places = variant.places
        if variant.format == "gguf":
            check_complete(places, path=path)
        shapes = logical_shapes({name: place.shape for name, place in places.items()})
        self.tensors: Mapping[str, TensorInfo] = MappingProxyType(
            {
                name: TensorInfo(name, shapes[name], place.tensor.type, place.nbytes)
                for name, place in places.items()
            }
        )

    @property
    def format(self) -> Format:
        """The file format."""
        return self.variant.format

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Logical shape of every tensor."""
        return {name: info.shape for name, info in self.tensors.items()}

    @property
    def num_heads(self) -> int | None:
        """Number of attention heads, if the file says it.

        Raises:
            GGUFError: If the file says something that is no number of heads.
        """
        value = self.metadata.get(_HEAD_COUNT_KEY) if self.format == "gguf" else self._text_heads()
        if value is None:
            return None
        if type(value) is not int or not 1 <= value <= 65_536:
            raise GGUFError(
                f"the number of attention heads is {str(value)[:40]!r}; a whole number above 0 is "
                "needed. Correct the file's metadata.",
                path=self.path,
            )
        return value

    def _text_heads(self) -> object:
        """Read `num_heads`, or `model.num_heads` of a JSON `config`, from safetensors metadata."""
        text = self.metadata.get("num_heads")
        if isinstance(text, str):
            return int(text) if text.isascii() and text.isdigit() and len(text) < 9 else text
        config = self.metadata.get("config")
        try:
            parsed = json.loads(config) if isinstance(config, str) else None
        except (ValueError, RecursionError):
            return None  # other tools use this key for other content
        model = parsed.get("model") if isinstance(parsed, dict) else None
        return model.get("num_heads") if isinstance(model, dict) else None

    def read(self, name: str) -> Tensor:
        """Read a tensor as it is stored, into its own memory on the CPU.

        Args:
            name: A key of `tensors`.

        Returns:
            Packed types: the bytes, uint8 `(rows, row_bytes)`. Plain types: the tensor in the
            dtype and shape of the file.

        Raises:
            GGUFError: If there is no such tensor, or the file has changed since it was opened.
        """
        place, info = self._find(name), self.tensors[name]
        data = place.read()
        if info.type in PLAIN_DTYPES:
            return data.reshape(info.shape)
        if info.type in ROW_TYPES:
            return data
        ggml = TYPES_BY_NAME[info.type]
        row_len = info.shape[-1]
        if row_len % ggml.block:  # a converter folded it into rows that divide
            row_len = ggml.block
        return data.reshape(-1, row_len // ggml.block * ggml.bytes)

    def dequantize(self, name: str, dtype: torch.dtype = torch.float32) -> Tensor:
        """Read and decode a tensor.

        Args:
            name: A key of `tensors`.
            dtype: Result type.

        Returns:
            The weights in their logical shape, on the CPU.

        Raises:
            GGUFError: If there is no such tensor, it holds no weights, or the file has changed
                since it was opened.
        """
        info = self.weight_info(name)
        return dequantize(self.read(name), info.type, info.shape, dtype)

    def weights(self, dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
        """Read and decode every tensor that holds weights; whole numbers are left out."""
        return {
            name: self.dequantize(name, dtype)
            for name, info in self.tensors.items()
            if info.type in _WEIGHT_TYPES
        }

    def weight_info(self, name: str) -> TensorInfo:
        """Describe a tensor that must hold weights: packed, or floating-point numbers.

        Raises:
            GGUFError: If there is no such tensor, or it holds whole numbers.
        """
        self._find(name)
        info = self.tensors[name]
        if info.type not in _WEIGHT_TYPES:
            raise self._error(
                f"tensor {name!r} holds {info.type} numbers; floating-point or quantised weights "
                "are needed. Get another file of this model."
            )
        return info

    def close(self) -> None:
        """Refuse further reads; the file itself is open only during a read."""
        self._closed = True

    def __enter__(self) -> WeightsFile:
        """Return the file itself."""
        return self

    def __exit__(self, *error: object) -> None:
        """Close the file."""
        self.close()

    def _find(self, name: str) -> Place:
        if self._closed:
            raise self._error(f"tensor {name!r} was asked for after the file was closed.")
        if name not in self.variant.places:
            raise self._error(f"there is no tensor {name!r} in this file.")
        return self.variant.places[name]

    def _error(self, message: str) -> GGUFError:
        return GGUFError(message, path=self.path)


def open_weights(path: str | Path, *, part: Part | None = None) -> WeightsFile:
    """Open a GGUF or safetensors file, whatever its name ends in.

    Args:
        path: The file, or a shard, index or folder of a model in several (`shards.py`).
        part: What is wanted of a file that holds several models, such as a checkpoint with its
            VAE; by default the transformer comes first.

    Returns:
        The file with its header parsed and checked; no weight has been read.

    Raises:
        GGUFError: If the file is missing, damaged, cut short or of another kind; the message says
            which, on one line.
    """
    path = Path(path)
    shards = shard_paths(path)
    headers = [_read_header(Source(shard), num_shards=len(shards)) for shard in shards]
    format, first = headers[0]
    tensors = [tensor for _, header in headers for tensor in header.tensors]
    variant = describe(tensors, first.metadata, format=format, part=part, path=path)
    return WeightsFile(path, variant, first.metadata)


def _read_header(source: Source, *, num_shards: int) -> tuple[Format, Header]:
    format = _kind(source)
    if source.size < _LEAST_BYTES[format]:
        raise source.error(
            f"truncated download: the file ends after {source.size} bytes, inside the {format} "
            "header. Download the file again."
        )
    if format == "gguf":
        return format, reader.read_header(source, num_shards=num_shards)
    return format, safetensors_header.read_header(source)


def _kind(source: Source) -> Format:
    """Tell the two formats apart, and name other content that is often found in such files."""
    head = source.read(0, min(source.size, 64))
    if not head:
        raise source.error("the file is empty: the download failed. Download it again.")
    if head[:4] == b"GGUF":
        return "gguf"
    if head[8:9] == b"{" and head[:2] != b"PK":
        return "safetensors"
    for magic, what in _WRONG_KINDS:
        if head.startswith(magic):
            raise source.error(f"this is {what}")
    text = head.lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if text.startswith((b"<!doctype", b"<html", b"<?xml", b"<head")):
        raise source.error("this is a web page: the download failed. Download the file again.")
    if text.startswith((b"{", b"[")):
        raise source.error("this is JSON text, not weights. Download the weights file itself.")
    raise source.error(
        f"this is neither GGUF nor safetensors (it starts with {head[:8]!r}). Download it again."
    )
