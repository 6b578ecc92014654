"""GGUF v2/v3 headers, own parser.

No number in the file is trusted: each count or length is compared with the remaining bytes before
anything is read, looped over or allocated, in Python integers (64-bit fields wrap in C readers).
Arrays are skipped and read on access: tokenizer vocabularies have up to a million elements. Format:
ggml `docs/gguf.md`; dimensions are stored fastest first.
"""

from __future__ import annotations

import logging
import math
import struct
from typing import NamedTuple

from .metadata import ARRAY, BOOL, MAX_STRING, SCALARS, STRING, Cursor, Metadata, StoredArray
from .source import Source
from .types import GGML_TYPES, REMOVED_TYPES, UNDECODABLE_TYPES, Header, StoredTensor

log = logging.getLogger(__name__)

ORIG_SHAPE_KEY = "comfy.gguf.orig_shape."

_MAX_ENTRIES = 65_536
_MAX_DIMS = 8
_MAX_NAME = 512
_MAX_KEY = 65_535
_MAX_ARRAY_STRINGS = 1 << 21  # strings in arrays are the only thing skipped one by one
_MAX_GAP = 1 << 20


def read_header(source: Source, *, num_shards: int = 1) -> Header:
    """Parse and check the header of a file that starts with the GGUF magic.

    Args:
        source: The file.
        num_shards: How many files of a split model are opened together.

    Returns:
        Metadata, and every tensor with a position that lies inside the file.

    Raises:
        GGUFError: If anything in the header is damaged, contradicts the file's size or is not
            supported (version 1, big endian, a part of a split file alone).
    """
    cursor = Cursor(source, offset=4, end=source.size)
    version = cursor.integer("I", "the version")
    if version and version & 0xFFFF == 0:
        raise cursor.error("this is a big-endian GGUF file. Convert it to little endian.")
    if version not in (2, 3):
        raise cursor.error(f"GGUF version {version} is not supported (2 and 3 are).")
    num_tensors = _count(cursor, "tensors", least_bytes=32)
    num_keys = _count(cursor, "metadata keys", least_bytes=13)
    values: dict[str, object] = {}
    for _ in range(num_keys):
        key = cursor.name("a metadata key", limit=_MAX_KEY)
        if key in values:
            raise cursor.error(f"the metadata key {key!r} occurs twice: the header is damaged.")
        values[key] = _value(cursor, key)
    metadata = Metadata(source, values)
    alignment = _alignment(cursor, metadata)
    _check_metadata(cursor, metadata, num_shards=num_shards)
    raw = [_tensor(cursor) for _ in range(num_tensors)]
    data_start = -(-cursor.pos // alignment) * alignment
    stored = tuple(_place(t, source, data_start=data_start, alignment=alignment) for t in raw)
    _check_extents(stored, source, data_start=data_start)
    return Header(metadata, tuple(_with_orig_shape(t, metadata, source) for t in stored))


def _count(cursor: Cursor, what: str, *, least_bytes: int) -> int:
    count = cursor.integer("Q", f"the number of {what}")
    if count > _MAX_ENTRIES or count * least_bytes > cursor.end:
        raise cursor.error(
            f"the header claims {count} {what}, too many for a file of {cursor.end} bytes: it is "
            "damaged or cut short. Download the file again."
        )
    return count


def _value(cursor: Cursor, key: str) -> object:
    kind = cursor.integer("I", f"the type of {key!r}")
    what = f"the value of {key!r}"
    if kind == STRING:
        return cursor.string(what, limit=MAX_STRING)
    if kind == ARRAY:
        return _array(cursor, key)
    if kind not in SCALARS:
        raise cursor.error(f"{what} has the unknown type {kind}: the header is damaged.")
    value = cursor.scalar(SCALARS[kind], what)
    if kind != BOOL:
        return value
    if value not in (0, 1):
        raise cursor.error(f"{what} is the bool {value}, 0 or 1 is needed: the header is damaged.")
    return bool(value)


def _array(cursor: Cursor, key: str) -> StoredArray:
    what = f"the array {key!r}"
    element = cursor.integer("I", f"the element type of {what}")
    count = cursor.integer("Q", f"the length of {what}")
    start = cursor.pos
    if element == STRING:
        cursor.need(count * 8, what)
        if count > _MAX_ARRAY_STRINGS:
            raise cursor.error(f"{what} claims {count} strings, at most {_MAX_ARRAY_STRINGS} fit.")
        cursor.skip_strings(count, what)
    elif element in SCALARS:
        cursor.skip(count * struct.calcsize("<" + SCALARS[element]), what)
    elif element == ARRAY:
        raise cursor.error(f"{what} holds arrays: nested arrays are not supported.")
    else:
        raise cursor.error(f"{what} has the unknown element type {element}: it is damaged.")
    return StoredArray(element, count, start, cursor.pos - start)


def _alignment(cursor: Cursor, metadata: Metadata) -> int:
    value = metadata.get("general.alignment", 32)
    if type(value) is int and 8 <= value <= 65_536 and value & (value - 1) == 0:
        return value
    raise cursor.error(
        f"general.alignment is {value!r}; a power of two from 8 to 65536 is needed: the header is "
        "damaged."
    )


def _check_metadata(cursor: Cursor, metadata: Metadata, *, num_shards: int) -> None:
    architecture = metadata.get("general.architecture", "")
    if not isinstance(architecture, str):
        raise cursor.error("general.architecture is not a string: the header is damaged.")
    count = metadata.get("split.count", 0)
    if isinstance(count, int) and count > 1 and count != num_shards:
        number = metadata.get("split.no")
        place = f"part {number + 1} of {count}" if isinstance(number, int) else f"one of {count}"
        raise cursor.error(
            f"this is {place} of a split model. Put all {count} parts into one folder, under the "
            f"names that they were published with (-00001-of-{count:05}.gguf ...)."
        )


class _RawTensor(NamedTuple):
    """A tensor entry whose offset has not been checked yet."""

    name: str
    dims: tuple[int, ...]
    type_id: int
    offset: int


def _tensor(cursor: Cursor) -> _RawTensor:
    name = cursor.name("a tensor name", limit=_MAX_NAME)
    num_dims = cursor.integer("I", f"the number of dimensions of {name!r}")
    if num_dims > _MAX_DIMS:
        raise cursor.error(
            f"tensor {name!r} claims {num_dims} dimensions, at most {_MAX_DIMS} are allowed: the "
            "header is damaged.",
        )
    data = cursor.take(8 * num_dims, f"the shape of {name!r}")
    dims = struct.unpack(f"<{num_dims}Q", data)
    if 0 in dims:
        raise cursor.error(f"tensor {name!r} has a dimension of 0: {list(dims)}.")
    type_id = cursor.integer("I", f"the type of {name!r}")
    return _RawTensor(name, dims, type_id, cursor.integer("Q", f"the offset of {name!r}"))


def _place(raw: _RawTensor, source: Source, *, data_start: int, alignment: int) -> StoredTensor:
    """Check a tensor's type, row length and position."""
    if raw.type_id not in GGML_TYPES:
        raise source.error(_type_problem(raw))
    ggml = GGML_TYPES[raw.type_id]
    row_len = raw.dims[0] if raw.dims else 1
    if row_len % ggml.block:
        raise source.error(
            f"tensor {raw.name!r} has rows of {row_len} elements, {ggml.name} needs a multiple of "
            f"{ggml.block}: the header is damaged.",
        )
    nbytes = math.prod(raw.dims) // ggml.block * ggml.bytes
    offset = data_start + raw.offset
    if raw.offset % alignment:
        raise source.error(
            f"tensor {raw.name!r} starts at {raw.offset}, a multiple of {alignment} is needed: the "
            "header is damaged.",
        )
    source.require_inside(offset + nbytes, what=f"tensor {raw.name!r} ({ggml.name})")
    shape = tuple(reversed(raw.dims))
    return StoredTensor(raw.name, ggml.name, shape, offset, nbytes, source)


def _type_problem(raw: _RawTensor) -> str:
    if raw.type_id in REMOVED_TYPES:
        return f"tensor {raw.name!r} has the removed ggml type {raw.type_id}. Get a newer file."
    if kind := UNDECODABLE_TYPES.get(raw.type_id):
        return f"tensor {raw.name!r} is stored as {kind}, which cannot be decoded."
    return (
        f"tensor {raw.name!r} has the unknown ggml type {raw.type_id}: the file is newer than this "
        "loader, or damaged."
    )


def _check_extents(tensors: tuple[StoredTensor, ...], source: Source, *, data_start: int) -> None:
    """Refuse duplicate names and overlapping bytes; warn of bytes that belong to no tensor."""
    seen: set[str] = set()
    for tensor in tensors:
        if tensor.name in seen:
            raise source.error(f"tensor {tensor.name!r} occurs twice: the header is damaged.")
        seen.add(tensor.name)
    end, last, unused = data_start, "", 0
    for tensor in sorted(tensors, key=lambda t: t.offset):
        if tensor.offset < end:
            raise source.error(
                f"tensors {last!r} and {tensor.name!r} overlap: the header is damaged.",
            )
        unused += tensor.offset - end
        end, last = tensor.offset + tensor.nbytes, tensor.name
    unused += max(0, source.size - end)
    if tensors and unused > _MAX_GAP:
        log.warning("%s: %d bytes belong to no tensor", source.path.name, unused)


def _with_orig_shape(tensor: StoredTensor, metadata: Metadata, source: Source) -> StoredTensor:
    """Restore the shape that a converter noted before it folded the tensor."""
    key = ORIG_SHAPE_KEY + tensor.name
    if key not in metadata:
        return tensor
    value = metadata[key]
    shape = tuple(n for n in value if type(n) is int and n > 0) if isinstance(value, tuple) else ()
    if shape != value or not shape or math.prod(shape) != math.prod(tensor.shape):
        raise source.error(
            f"{key} is {str(value)[:80]} but the tensor's shape is {list(tensor.shape)}: as many "
            "elements are needed. The header is damaged.",
        )
    return tensor._replace(shape=shape)
