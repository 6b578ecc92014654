"""Safetensors headers, checked like GGUF ones: 8 bytes of length, JSON, data without gaps."""

from __future__ import annotations

import json
import math

from .source import Source
from .types import PLAIN_DTYPES, Header, StoredTensor

_MAX_HEADER = 16 << 20
_MAX_MARKS = 1 << 19  # signs that begin or part values: each becomes an object in memory
_MAX_DIMS = 8
_MAX_NAME = 512
_MAX_NUMBER = 1 << 63


def read_header(source: Source) -> Header:
    """Parse and check the header of a safetensors file, whose ninth byte is `{`.

    Returns:
        The `__metadata__` strings, and every tensor with a position that lies inside the file.

    Raises:
        GGUFError: If the header is damaged or contradicts the file's size.
    """
    length = int.from_bytes(source.read(0, 8), "little")
    if length > source.size - 8:
        raise source.error(
            f"the safetensors header claims {length} bytes but the file has {source.size}: it is a "
            "truncated download or damaged. Download the file again."
        )
    if length > _MAX_HEADER:
        raise source.error(
            f"the safetensors header claims {length} bytes, at most {_MAX_HEADER} are read: no "
            "model needs that. Download the file again."
        )
    text = source.read(8, length)
    if sum(map(text.count, (b",", b"[", b"{"))) > _MAX_MARKS:
        raise source.error(
            f"the safetensors header has more than {_MAX_MARKS} values: no model needs that. "
            "Download the file again."
        )
    try:
        parsed = json.loads(text, object_pairs_hook=_unique)
    except (ValueError, RecursionError) as reason:
        detail = " ".join(str(reason).split())[:120]
        raise source.error(f"the safetensors header is damaged ({detail}).") from reason
    if not isinstance(parsed, dict):
        raise source.error("the safetensors header is damaged (not a JSON object).")
    metadata = parsed.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(v, str) for v in metadata.values()):
        raise source.error("the safetensors header is damaged (its metadata is not text).")
    tensors = tuple(_entry(name, entry, source, 8 + length) for name, entry in parsed.items())
    _check_extents(tensors, source, data_start=8 + length)
    return Header(metadata, tensors)


def _unique(pairs: list[tuple[str, object]]) -> dict[str, object]:
    result = dict(pairs)
    if len(result) != len(pairs):
        raise ValueError("a name occurs twice")
    "".join(result).encode()  # a lone surrogate, which nothing can print, is a ValueError
    return result


def _entry(name: str, entry: object, source: Source, data_start: int) -> StoredTensor:
    if len(name) > _MAX_NAME:
        raise source.error(
            f"a tensor name has {len(name)} characters, at most {_MAX_NAME} are read."
        )
    if not isinstance(entry, dict) or not {"dtype", "shape", "data_offsets"} <= entry.keys():
        raise source.error(f"the entry of tensor {name!r} is damaged.")
    kind, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(kind, str) or kind not in PLAIN_DTYPES:
        known = ", ".join(PLAIN_DTYPES)
        raise source.error(
            f"tensor {name!r} has the unknown type {str(kind)[:40]!r}. Known types: {known}."
        )
    if (
        not _is_naturals(shape)
        or not _is_naturals(offsets)
        or len(offsets) != 2
        or not _fits(shape)
    ):
        raise source.error(f"the shape or position of tensor {name!r} is damaged.")
    begin, end = offsets
    needed = math.prod(shape) * PLAIN_DTYPES[kind].itemsize
    if end - begin != needed:
        raise source.error(
            f"tensor {name!r} ({kind}, shape {shape}) needs {needed} bytes but its position spans "
            f"{end - begin}: the header is damaged."
        )
    source.require_inside(data_start + end, what=f"tensor {name!r} ({kind})")
    return StoredTensor(name, kind, tuple(shape), data_start + begin, needed, source)


def _is_naturals(value: object) -> bool:
    return isinstance(value, list) and all(type(n) is int and 0 <= n < _MAX_NUMBER for n in value)


def _fits(shape: list[int]) -> bool:
    """Tell whether torch can describe a shape, whose strides are 64-bit numbers."""
    return len(shape) <= _MAX_DIMS and math.prod(max(n, 1) for n in shape) < _MAX_NUMBER


def _check_extents(tensors: tuple[StoredTensor, ...], source: Source, *, data_start: int) -> None:
    """Every byte must belong to exactly one tensor, as the format demands."""
    end = data_start
    for tensor in sorted(tensors, key=lambda t: (t.offset, t.nbytes)):
        if tensor.offset != end:
            raise source.error(
                f"tensor {tensor.name!r} starts at byte {tensor.offset}, {end} is needed: tensors "
                "overlap or leave a gap. The header is damaged."
            )
        end += tensor.nbytes
    if end != source.size:
        raise source.error(f"{source.size - end} bytes belong to no tensor: the file is damaged.")
