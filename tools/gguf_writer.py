"""Writer of GGUF v3 containers: a header for all tensors, then one tensor at a time.

`gguf.GGUFWriter` keeps every tensor until the end, and releases after 0.19 refuse the 5-D patch
embedding that Wan files carry; the container itself is small.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Iterable, Mapping, Sequence
from math import prod
from pathlib import Path
from typing import NamedTuple

import torch
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType
from torch import Tensor

ALIGNMENT = 32  # bytes; the default of the format
_UINT32, _STRING = 4, 8  # value types of the metadata


class Entry(NamedTuple):
    """One tensor of a file to be written."""

    name: str
    shape: tuple[int, ...]
    """Logical shape in torch order."""
    type: str
    """GGML type, such as Q4_K or F32."""

    @property
    def nbytes(self) -> int:
        """Give the tensor's bytes in the file, without padding."""
        block, block_bytes = GGML_QUANT_SIZES[GGMLQuantizationType[self.type]]
        return int(prod(self.shape) // block * block_bytes)


class Layout(NamedTuple):
    """Positions of the parts of a file."""

    header: bytes
    """Everything before the data, padded to its start."""
    offsets: tuple[int, ...]
    """Start of each tensor in the file, in bytes."""
    size: int
    """Size of the whole file, in bytes."""


def layout(entries: Sequence[Entry], *, metadata: Mapping[str, str | int]) -> Layout:
    """Compute the layout of a file.

    Args:
        entries: The tensors, in file order.
        metadata: Keys to strings or unsigned 32-bit numbers.

    Returns:
        The header and the offset of every tensor.
    """
    parts = [struct.pack("<4sIQQ", b"GGUF", 3, len(entries), len(metadata))]
    for key, value in metadata.items():
        parts.append(_string(key))
        if isinstance(value, str):
            parts.append(struct.pack("<I", _STRING) + _string(value))
        else:
            parts.append(struct.pack("<II", _UINT32, value))
    offset, offsets = 0, []
    for entry in entries:
        dims = entry.shape[::-1]  # fastest-varying first
        type_id = GGMLQuantizationType[entry.type].value
        parts.append(_string(entry.name))
        parts.append(struct.pack(f"<I{len(dims)}QIQ", len(dims), *dims, type_id, offset))
        offsets.append(offset)
        offset += _padded(entry.nbytes)
    header = b"".join(parts)
    header = header.ljust(_padded(len(header)), b"\0")
    return Layout(header, tuple(len(header) + o for o in offsets), len(header) + offset)


def write_gguf(
    path: Path,
    entries: Sequence[Entry],
    payloads: Iterable[Tensor],
    *,
    metadata: Mapping[str, str | int],
) -> None:
    """Write to a temporary file and rename it when it is complete.

    Args:
        path: The file; an existing one is replaced.
        entries: The tensors, in file order.
        payloads: Their contents in the same order, taken one at a time: packed bytes or plain
            values of the entry's type.
        metadata: Keys to strings or unsigned 32-bit numbers.

    Raises:
        ValueError: If a payload's size differs from its entry's.
        OSError: If writing fails; the temporary file is deleted.
    """
    plan = layout(entries, metadata=metadata)
    unfinished = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        with unfinished.open("wb") as file:
            file.write(plan.header)
            for entry, payload in zip(entries, payloads, strict=True):
                content = payload.contiguous().reshape(-1).view(torch.uint8).numpy()
                if content.size != entry.nbytes:
                    raise ValueError(
                        f"Tensor '{entry.name}' has {content.size} bytes; "
                        f"{entry.type} of shape {entry.shape} needs {entry.nbytes}."
                    )
                file.write(content.data)
                file.write(b"\0" * (_padded(entry.nbytes) - entry.nbytes))
        unfinished.replace(path)
    finally:
        unfinished.unlink(missing_ok=True)


def _string(text: str) -> bytes:
    encoded = text.encode()
    return struct.pack("<Q", len(encoded)) + encoded


def _padded(size: int) -> int:
    return -(-size // ALIGNMENT) * ALIGNMENT
