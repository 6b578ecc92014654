"""GGUF files written field by field, so that tests can write wrong ones."""

from __future__ import annotations

import struct

from comfyui_multitalk.wan_gguf_loader.types import TYPES_BY_NAME

U8, I32, U32, BOOL, STRING, ARRAY, U64 = 0, 5, 4, 7, 8, 9, 10


def text(value: str | bytes, *, length: int | None = None) -> bytes:
    """A string with its length, or with a length that is not its own."""
    data = value.encode() if isinstance(value, str) else value
    return struct.pack("<Q", len(data) if length is None else length) + data


def pair(key: str | bytes, kind: int, payload: bytes) -> bytes:
    """One metadata entry."""
    return text(key) + struct.pack("<I", kind) + payload


def array(key: str, element: int, length: int, payload: bytes = b"") -> bytes:
    """One metadata entry that is an array."""
    return pair(key, ARRAY, struct.pack("<IQ", element, length) + payload)


def entry(
    name: str | bytes,
    dims: tuple[int, ...],
    *,
    type_id: int = 0,
    offset: int = 0,
    num_dims: int | None = None,
) -> bytes:
    """One tensor entry; `dims` as stored, fastest first."""
    count = len(dims) if num_dims is None else num_dims
    fields = struct.pack(f"<I{len(dims)}QIQ", count, *dims, type_id, offset)
    return text(name) + fields


def gguf(
    *,
    pairs: tuple[bytes, ...] = (),
    entries: tuple[bytes, ...] = (),
    data: bytes = b"",
    magic: bytes = b"GGUF",
    version: int = 3,
    num_pairs: int | None = None,
    num_entries: int | None = None,
    alignment: int = 32,
) -> bytes:
    """A whole file; the counts are the true ones unless given."""
    counts = (
        len(entries) if num_entries is None else num_entries,
        len(pairs) if num_pairs is None else num_pairs,
    )
    head = magic + struct.pack("<IQQ", version, *counts) + b"".join(pairs) + b"".join(entries)
    return head + bytes(-len(head) % alignment) + data


ARCHITECTURE = pair("general.architecture", STRING, text("wan"))


def small_file() -> bytes:
    """A good file: scalars, arrays of both kinds, a plain and a packed tensor."""
    q8_0 = TYPES_BY_NAME["Q8_0"]
    return gguf(
        pairs=(
            ARCHITECTURE,
            pair("wan.attention.head_count", U32, struct.pack("<I", 2)),
            pair("a.flag", BOOL, b"\1"),
            array("some.numbers", I32, 3, struct.pack("<3i", 1, -2, 3)),
            array("some.words", STRING, 2, text("one") + text("zwölf")),
        ),
        entries=(
            entry("plain.weight", (4, 2)),
            entry("packed.weight", (32, 3), type_id=q8_0.id, offset=32),
        ),
        data=struct.pack("<8f", *range(8)) + bytes(range(3 * q8_0.bytes)),
    )
