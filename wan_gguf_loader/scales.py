"""Weights with scales beside them: which tensors belong together, and the values they stand for.

The scale of a weight is a tensor of its own, under a name that differs between packagings:
`q.scale_weight` (ComfyUI's first fp8 files, Kijai's), `q.weight_scale` (ComfyUI's `comfy_quant`,
LightX2V), `q.weight_scale_inv` (a factor like the others, in spite of its name) ... A weight is
always its stored value times its scale.

Values of one byte with one scale, or with one for each row, stay packed (`rows.py`). The other
forms are decoded when they are read: fp8 with a scale for each block, fp4 (NVFP4), and wider values
with a scale. `comfy_quant` stores block scales in the tiles that cuBLAS reads (its documentation,
"1D block scaling factors layout").
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Set
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from .errors import GGUFError
from .rows import ROW_TYPE_OF, TAIL_BYTES, pack_rows
from .types import PLAIN_DTYPES, StoredTensor

Form = Literal["rows", "plain", "blocks", "tiles", "fp4"]

_WEIGHT = "weight"  # after a dot, or after the underscore of torch's `in_proj_weight`
_SCALE_ENDS = ("scale_weight", "weight_scale", "weight_scale_inv", "weight.scale", "weight_scales")
_SECOND_END = "weight_scale_2"
_INPUT_ENDS = ("scale_input", "input_scale")
"""Scales of a layer's input: only a product in fp8 needs them."""
_FORMAT_END = "comfy_quant"
_MARKERS = ("scaled_fp8", ".scaled_fp8")
_LAYERS_KEY = "_quantization_metadata"
_FORMATS = {
    "float8_e4m3fn": "F8_E4M3",
    "float8_e5m2": "F8_E5M2",
    "int8_tensorwise": "I8",
    "mxfp8": "F8_E4M3",
    "nvfp4": "U8",
}
"""Formats of `comfy_quant` that are read, and the storage type of the values."""
_FP4_VALUES = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)
_FP4_BLOCK, _FP8_BLOCK = 16, 32
_TILE = (128, 4)
_MAX_FORMAT = 1 << 16  # bytes of a description of a format


@dataclass(frozen=True, slots=True)
class ScaledTensor:
    """A weight and its scales.

    Attributes:
        weight: The stored values.
        scale: The scale or scales.
        second: The scale of the whole tensor where `scale` is one of blocks (fp4).
        form: How they are combined.
        type: Storage type of what `read` gives: a row type, or `"F32"`.
        shape: Logical shape.
    """

    weight: StoredTensor
    scale: StoredTensor
    second: StoredTensor | None
    form: Form
    type: str
    shape: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        """Bytes of what `read` gives."""
        if self.form == "rows":
            return math.prod(self.shape) + self.shape[0] * TAIL_BYTES
        return math.prod(self.shape) * 4

    def read(self) -> Tensor:
        """Read packed rows, uint8 `(rows, K + 16)`, or the decoded weights in float32."""
        values, scale = self.weight.read(), self.scale.read()
        rows = self.shape[0] if self.shape else 1
        if self.form == "rows":
            return pack_rows(values.view(rows, -1), scale.reshape(-1).expand(rows))
        if self.form == "plain":
            scale = scale.float().reshape(-1)
            return values.float() * (scale if len(scale) == 1 else _per_row(scale, values.ndim))
        if self.form == "blocks":
            return values.float() * _spread(scale.float(), self.shape)
        if self.form == "tiles":
            scale = _from_tiles(scale, rows, self.shape[1] // _FP8_BLOCK)
            return values.float() * _spread(scale.view(torch.float8_e8m0fnu).float(), self.shape)
        assert self.second is not None
        scale = _from_tiles(scale, rows, self.shape[1] // _FP4_BLOCK).view(torch.float8_e4m3fn)
        return _fp4(values) * _spread(self.second.read().float() * scale.float(), self.shape)


class Grouped(NamedTuple):
    """Tensors of a file after the scales have found their weights.

    Attributes:
        scaled: Weights with scales, by the weight's name.
        absorbed: Names of the tensors that are used up: scales, markers, format descriptions.
    """

    scaled: dict[str, ScaledTensor]
    absorbed: Set[str]


def group_scales(tensors: Mapping[str, StoredTensor], metadata: Mapping[str, object]) -> Grouped:
    """Find the scales of every weight of a file.

    Raises:
        GGUFError: If a scale does not fit its weight, or the weight has a form that is not read.
    """
    layers = _layer_formats(metadata)
    scaled: dict[str, ScaledTensor] = {}
    absorbed = {name for name in tensors if name in _MARKERS or name.endswith(_MARKERS[1])}
    for name, weight in tensors.items():
        stem = name.removesuffix(_WEIGHT)
        if stem == name or not stem.endswith((".", "_")):
            continue
        absorbed |= {stem + end for end in _INPUT_ENDS if stem + end in tensors}
        scales = [stem + end for end in _SCALE_ENDS if stem + end in tensors]
        format = _format_of(stem, tensors, layers)
        if not scales and format is None:
            continue
        if len(scales) != 1:
            raise _error(weight, f"has {len(scales)} scales ({', '.join(scales) or 'none'})")
        second = stem + _SECOND_END if format == "nvfp4" else ""
        scaled[name] = _combine(weight, tensors[scales[0]], tensors.get(second), format)
        absorbed |= {*scales, second, stem + _FORMAT_END} & tensors.keys()
    return Grouped(scaled, absorbed)


def _layer_formats(metadata: Mapping[str, object]) -> Mapping[str, object]:
    """Read the formats of layers that newer ComfyUI files keep in their metadata."""
    text = metadata.get(_LAYERS_KEY)
    try:
        layers = json.loads(text).get("layers") if isinstance(text, str) else None
    except (ValueError, RecursionError, AttributeError):
        return {}
    return layers if isinstance(layers, dict) else {}


def _format_of(
    stem: str, tensors: Mapping[str, StoredTensor], layers: Mapping[str, object]
) -> str | None:
    """Give the `comfy_quant` format of a layer; None if nothing says one."""
    stored = tensors.get(stem + _FORMAT_END)
    value = layers.get(stem.removesuffix("."))
    if stored is not None:
        if stored.nbytes > _MAX_FORMAT:
            raise _error(stored, f"has {stored.nbytes} bytes, too many for the name of a format")
        try:
            value = json.loads(stored.read().reshape(-1).view(torch.uint8).numpy().tobytes())
        except (ValueError, RecursionError) as reason:
            raise _error(stored, "is no description of a format (JSON)") from reason
    elif value is None:
        return None
    where = tensors[stem + _WEIGHT]
    if not isinstance(value, dict):
        raise _error(where, "has a description of its format that is no JSON object")
    format, params = value.get("format"), value.get("params")
    rotated = value.get("convrot") or (isinstance(params, dict) and params.get("convrot"))
    if not isinstance(format, str) or format not in _FORMATS or rotated:
        what = f"{format} with rotated rows (convrot)" if rotated else str(format)[:40]
        raise _error(where, f"is stored as {what}, which is not read")
    return format


def _combine(
    weight: StoredTensor, scale: StoredTensor, second: StoredTensor | None, format: str | None
) -> ScaledTensor:
    """Check that a weight and its scales fit, and name their form."""
    if format is not None and weight.type == "U8":
        weight = weight._replace(type=_FORMATS[format])
    if format is not None and weight.type != _FORMATS[format]:
        raise _error(weight, f"holds {weight.type} numbers, not {format}")
    shape, numbers = weight.shape, math.prod(scale.shape)
    if format == "nvfp4":
        shape = (*shape[:-1], shape[-1] * 2) if shape else shape
    if format in ("nvfp4", "mxfp8"):
        block = _FP4_BLOCK if format == "nvfp4" else _FP8_BLOCK
        tiles = len(shape) == 2 and shape[1] % block == 0
        lacks = format == "nvfp4" and (second is None or math.prod(second.shape) != 1)
        if not tiles or numbers != _tiled_size(shape[0], shape[1] // block) or lacks:
            raise _misfit(weight, scale)
        return ScaledTensor(weight, scale, second, "fp4" if second else "tiles", "F32", shape)
    dtype = PLAIN_DTYPES.get(weight.type)
    floating = dtype is not None and (dtype.is_floating_point or dtype == torch.int8)
    if (
        not floating
        or scale.type not in PLAIN_DTYPES
        or not PLAIN_DTYPES[scale.type].is_floating_point
    ):
        raise _misfit(weight, scale)
    assert dtype is not None
    per_row = numbers == 1 or (bool(shape) and numbers == shape[0] == scale.shape[0])
    if per_row and dtype in ROW_TYPE_OF and len(shape) > 1:
        return ScaledTensor(weight, scale, None, "rows", ROW_TYPE_OF[dtype], shape)
    if per_row:
        return ScaledTensor(weight, scale, None, "plain", "F32", shape)
    if len(shape) == 2 == len(scale.shape) and _block_of(shape, scale.shape):
        return ScaledTensor(weight, scale, None, "blocks", "F32", shape)
    raise _misfit(weight, scale)


def _block_of(shape: tuple[int, ...], scales: tuple[int, ...]) -> tuple[int, ...] | None:
    """Give the size of the blocks that share a scale; None if the two do not fit."""
    blocks = tuple(
        128 if -(-size // 128) == count else size // count
        for size, count in zip(shape, scales, strict=True)
        if count and size
    )
    fits = len(blocks) == len(shape) and all(
        -(-size // block) == count for size, block, count in zip(shape, blocks, scales, strict=True)
    )
    return blocks if fits else None


def _spread(scale: Tensor, shape: tuple[int, ...]) -> Tensor:
    """Repeat the scales of blocks to one for each value."""
    blocks = _block_of(shape, tuple(scale.shape))
    assert blocks is not None
    for dim, (block, size) in enumerate(zip(blocks, shape, strict=True)):
        scale = scale.repeat_interleave(block, dim=dim).narrow(dim, 0, size)
    return scale


def _per_row(scale: Tensor, ndim: int) -> Tensor:
    return scale.reshape(-1, *(1,) * (ndim - 1))


def _tiled_size(rows: int, columns: int) -> int:
    return math.prod(-(-n // tile) * tile for n, tile in zip((rows, columns), _TILE, strict=True))


def _from_tiles(scale: Tensor, rows: int, columns: int) -> Tensor:
    """Bring block scales from cuBLAS's tiles of 128 x 4 to rows and columns."""
    down, across = -(-rows // _TILE[0]), -(-columns // _TILE[1])
    tiles = scale.view(torch.uint8).reshape(down, across, 32, 4, 4)
    plain = tiles.permute(0, 3, 2, 1, 4).reshape(down * _TILE[0], across * _TILE[1])
    return plain[:rows, :columns].contiguous()


def _fp4(packed: Tensor) -> Tensor:
    """Decode fp4 (E2M1), two values in a byte with the first in the upper half."""
    values = torch.tensor([*_FP4_VALUES, *(-value for value in _FP4_VALUES)])
    packed = packed.view(torch.uint8)
    return values[torch.stack((packed >> 4, packed & 15), dim=-1).flatten(-2).int()]


def _misfit(weight: StoredTensor, scale: StoredTensor) -> GGUFError:
    return _error(
        weight,
        f"({weight.type}, {list(weight.shape)}) has the scale {scale.name!r} ({scale.type}, "
        f"{list(scale.shape)}), which does not fit it",
    )


def _error(tensor: StoredTensor, problem: str) -> GGUFError:
    return tensor.source.error(
        f"tensor {tensor.name!r} {problem}. Get another file of this model, such as GGUF, BF16, or "
        "scaled FP8."
    )
