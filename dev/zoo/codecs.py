"""Forms of one weight in safetensors files, each with the values that it stands for.

The decoding beside each form is the zoo's own, by the packaging's documentation.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

E4M3, E5M2 = torch.float8_e4m3fn, torch.float8_e5m2
LARGEST = {E4M3: 448.0, E5M2: 57344.0, torch.int8: 127.0}
_FP4_LEVELS = torch.tensor([0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0])

Per = Literal["tensor", "one", "row", "column", "block"]
"""Number of scales: `()`, `(1,)`, `(rows,)`, `(rows, 1)`, or one for 128 x 128 values."""


class Encoded(NamedTuple):
    """One weight in a file.

    Attributes:
        tensors: By what follows the layer's name.
        value: What they stand for, float32.
        format: Description of the format as `comfy_quant` has it.
    """

    tensors: Mapping[str, Tensor]
    value: Tensor
    format: Mapping[str, Any] | None = None


Codec = Callable[[Tensor], Encoded]


def plain(dtype: torch.dtype) -> Codec:
    """Round to a dtype."""

    def encode(value: Tensor) -> Encoded:
        stored = value.to(dtype)
        return Encoded({".weight": stored}, stored.float())

    return encode


def scaled(
    dtype: torch.dtype,
    end: str,
    per: Per = "tensor",
    *,
    scale_dtype: torch.dtype = torch.float32,
    others: Mapping[str, Tensor] | None = None,
) -> Codec:
    """Divide by a scale and round to eight bits.

    Args:
        dtype: Of the stored values.
        end: What follows the layer's name in that of the scale.
        per: What has a scale.
        scale_dtype: Of the scale.
        others: Tensors to add that change no weight, by what follows the layer's name.
    """

    def encode(value: Tensor) -> Encoded:
        scale = (_largest(value, per) / LARGEST[dtype]).to(scale_dtype)
        spread = _spread(scale, value) if per == "block" else _by_row(scale, value)
        divided = value / spread
        stored = (divided.round() if dtype == torch.int8 else divided).to(dtype)
        tensors = {".weight": stored, end: scale, **(others or {})}
        return Encoded(tensors, stored.float() * spread)

    return encode


def wide(dtype: torch.dtype, end: str) -> Codec:
    """Store values of more than a byte beside a scale for each row."""

    def encode(value: Tensor) -> Encoded:
        scale = _largest(value, "row")
        stored = (value / scale[:, None]).to(dtype)
        return Encoded({".weight": stored, end: scale}, stored.float() * scale[:, None])

    return encode


def comfy(format: str, *, as_bytes: bool = False, **params: Any) -> Codec:
    """Store as ComfyUI's `comfy_quant` does.

    Args:
        format: Name of the format.
        as_bytes: Store the values as uint8 whatever they are.
        **params: More of the description.
    """
    makers: Mapping[str, Codec] = {
        "float8_e4m3fn": scaled(E4M3, ".weight_scale"),
        "float8_e5m2": scaled(E5M2, ".weight_scale"),
        "int8_tensorwise": scaled(torch.int8, ".weight_scale"),
        "mxfp8": _mxfp8,
        "nvfp4": _nvfp4,
    }

    def encode(value: Tensor) -> Encoded:
        tensors, decoded, _ = makers[format](value)
        if as_bytes:
            tensors = {**tensors, ".weight": tensors[".weight"].view(torch.uint8)}
        return Encoded(tensors, decoded, {"format": format, **params})

    return encode


def with_descriptions(codec: Codec) -> Codec:
    """Put the description of the format into a tensor of each layer."""

    def encode(value: Tensor) -> Encoded:
        tensors, decoded, format = codec(value)
        return Encoded({**tensors, ".comfy_quant": as_json(format)}, decoded)

    return encode


def as_json(value: object) -> Tensor:
    """Give a JSON text as a tensor of bytes."""
    return torch.tensor(list(json.dumps(value).encode()), dtype=torch.uint8)


def tiled(scale: Tensor) -> Tensor:
    """Put block scales of one byte into cuBLAS's tiles of 128 rows and 4 columns."""
    rows, columns = scale.shape
    down, across = -(-rows // 128), -(-columns // 4)
    row, column = torch.arange(rows)[:, None], torch.arange(columns)[None]
    tile = row // 128 * across + column // 4
    inside = row % 32 * 16 + row % 128 // 32 * 4 + column % 4
    result = torch.zeros(down * across * 512, dtype=torch.uint8)
    result[tile * 512 + inside] = scale.view(torch.uint8)
    return result.view(down * 128, across * 4)


def _mxfp8(value: Tensor) -> Encoded:
    blocks = value.unflatten(1, (-1, 32))
    exponent = (blocks.abs().amax(-1).clamp(min=1e-12) / 448).log2().ceil()
    factor = exponent.exp2()[..., None]
    stored = (blocks / factor).to(E4M3)
    tensors = {
        ".weight": stored.flatten(1),
        ".weight_scale": tiled((exponent + 127).to(torch.uint8)),
    }
    return Encoded(tensors, (stored.float() * factor).flatten(1))


def _nvfp4(value: Tensor) -> Encoded:
    second = value.abs().max() / (448 * 6)
    blocks = value.unflatten(1, (-1, 16))
    scale = (blocks.abs().amax(-1) / 6 / second).to(E4M3)
    factor = (scale.float() * second)[..., None]
    distance = ((blocks / factor).abs()[..., None] - _FP4_LEVELS).abs()
    level = distance.argmin(-1)
    codes = (level + 8 * (blocks < 0)).to(torch.uint8).flatten(1)
    tensors = {
        ".weight": codes[:, ::2] << 4 | codes[:, 1::2],
        ".weight_scale": tiled(scale).view(E4M3),
        ".weight_scale_2": second,
    }
    signed = _FP4_LEVELS[level] * torch.where(blocks < 0, -1.0, 1.0)
    return Encoded(tensors, (signed * factor).flatten(1))


def _largest(value: Tensor, per: Per) -> Tensor:
    size = value.abs()
    if per == "block":
        rows, columns = (-(-n // 128) for n in value.shape)
        padded = torch.zeros(rows * 128, columns * 128)
        padded[: value.shape[0], : value.shape[1]] = size
        return padded.view(rows, 128, columns, 128).amax((1, 3))
    if per in ("row", "column"):
        rows = size.flatten(1).amax(1)
        return rows if per == "row" else rows[:, None]
    return size.max() if per == "tensor" else size.max()[None]


def _by_row(scale: Tensor, value: Tensor) -> Tensor:
    return scale.float().reshape(-1, *(1,) * (value.ndim - 1))


def _spread(scale: Tensor, value: Tensor) -> Tensor:
    spread = scale.float().repeat_interleave(128, 0).repeat_interleave(128, 1)
    return spread[: value.shape[0], : value.shape[1]]
