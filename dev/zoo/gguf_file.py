"""GGUF files, written and decoded without the loader: blocks by the `gguf` package, the rest here.

Types that the package cannot quantise to are written by `tools/quantize.py` (Q4_K, Q6_K), or
hold random blocks.
"""

from __future__ import annotations

import functools
import struct
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import gguf
import numpy as np
import torch
from torch import Tensor

from ...tools.quantize import quantize
from .files import Family, Loads, Variant, Written
from .values import Values, noise

Metadata = Mapping[str, object]

_SEARCHED = ("Q4_K", "Q6_K")
_NUM_RANDOM = 512  # different blocks of a type
_LARGEST = 1.0  # in a random block


class Packed(NamedTuple):
    """One tensor of a file.

    Attributes:
        type: Name of the GGML type.
        shape: In torch's order, as the file states it.
        data: The bytes.
        value: The decoded values, float32, in the model's shape.
    """

    type: str
    shape: tuple[int, ...]
    data: np.ndarray[Any, Any]
    value: Tensor


def pack(name: str, value: Tensor, type: str) -> Packed:
    """Encode a tensor, and decode what came out of it."""
    kind = gguf.GGMLQuantizationType[type]
    plain = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
    shape = tuple(value.shape)
    if type in plain:
        stored = value.to(plain[type])
        data = stored.contiguous().reshape(-1).view(torch.uint8).numpy()
        return Packed(type, shape, data, stored.float())
    if type in _SEARCHED:
        blocks = quantize(value.flatten(0, -2), type).numpy()
    else:
        try:
            blocks = gguf.quants.quantize(value.numpy(), kind)
        except NotImplementedError:
            blocks = _random(name, value.numel(), type)
    with np.errstate(all="ignore"):
        decoded = gguf.quants.dequantize(blocks.reshape(len(value), -1), kind)
    return Packed(type, shape, blocks.reshape(-1), torch.from_numpy(decoded).float().reshape(shape))


def raw(tensor: Tensor, type: str) -> Packed:
    """Store a tensor of whole numbers as it is."""
    return Packed(type, tuple(tensor.shape), tensor.view(torch.uint8).numpy(), tensor.float())


def _random(name: str, count: int, type: str) -> np.ndarray[Any, Any]:
    pool = _pool(type)
    block, _ = gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType[type]]
    chosen = noise(name, (count // block,)).mul(1e6).long() % len(pool)
    return pool[chosen.numpy()]


@functools.cache
def _pool(type: str) -> np.ndarray[Any, Any]:
    """Draw blocks until there are enough whose values are finite and not large."""
    kind = gguf.GGMLQuantizationType[type]
    _, block_bytes = gguf.GGML_QUANT_SIZES[kind]
    generator = np.random.default_rng([*type.encode()])
    found: list[np.ndarray[Any, Any]] = []
    while sum(map(len, found)) < _NUM_RANDOM:
        blocks = generator.integers(0, 256, (8 * _NUM_RANDOM, block_bytes), dtype=np.uint8)
        with np.errstate(all="ignore"):
            values = gguf.quants.dequantize(blocks, kind)
        found.append(blocks[(np.abs(values) < _LARGEST).all(axis=1)])
    return np.concatenate(found)[:_NUM_RANDOM]


def write(
    path: Path,
    tensors: Mapping[str, Packed],
    metadata: Metadata,
    *,
    version: int = 3,
    alignment: int = 32,
) -> Path:
    """Write a file; numbers are unsigned and of 32 bits, lists hold int32, float32 or strings."""
    if alignment != 32:
        metadata = {**metadata, "general.alignment": alignment}
    parts = [struct.pack("<4sIQQ", b"GGUF", version, len(tensors), len(metadata))]
    parts += [_text(key) + _value(value) for key, value in metadata.items()]
    offset, data = 0, []
    for name, tensor in tensors.items():
        kind = gguf.GGMLQuantizationType[tensor.type]
        dims = tensor.shape[::-1]
        parts.append(_text(name))
        parts.append(struct.pack(f"<I{len(dims)}QIQ", len(dims), *dims, kind.value, offset))
        content = tensor.data.tobytes()
        data.append(content + bytes(-len(content) % alignment))
        offset += len(data[-1])
    header = b"".join(parts)
    path.write_bytes(header + bytes(-len(header) % alignment) + b"".join(data))
    return path


def variant(family: Family, name: str, model: Callable[[], Values], type: str) -> Variant:
    """Describe a model with all its tensors in one plain type, as calcuis' files are."""

    def written(folder: Path) -> Written:
        tensors = {own: pack(own, value, type) for own, value in model().items()}
        path = write(folder / f"pig-{type}.gguf", tensors, {"general.architecture": "pig"})
        return Written(path, Loads({own: tensor.value for own, tensor in tensors.items()}))

    return Variant(family, name, written)


def _text(value: str) -> bytes:
    encoded = value.encode()
    return struct.pack("<Q", len(encoded)) + encoded


def _value(value: object) -> bytes:
    kinds = gguf.GGUFValueType
    if isinstance(value, str):
        return struct.pack("<I", kinds.STRING) + _text(value)
    if isinstance(value, bool):
        return struct.pack("<I?", kinds.BOOL, value)
    if isinstance(value, int):
        return struct.pack("<II", kinds.UINT32, value)
    if not isinstance(value, list):
        raise TypeError(f"{value!r} cannot be written")
    if isinstance(value[0], str):
        content = b"".join(map(_text, value))
        return struct.pack("<IIQ", kinds.ARRAY, kinds.STRING, len(value)) + content
    kind, code = (kinds.FLOAT32, "f") if isinstance(value[0], float) else (kinds.INT32, "i")
    return struct.pack(f"<IIQ{len(value)}{code}", kinds.ARRAY, kind, len(value), *value)
