"""Dequantisation of ggml blocks in plain torch, bit for bit the `gguf` package's result in float32.

Block layouts follow `ggml-common.h` and `ggml-quants.c`; the arithmetic follows the order of
`gguf.quants` so that every intermediate rounds alike. Everything runs on the device of the packed
bytes, with shifts as Python numbers so that nothing is uploaded; types with lookup tables are in
`dequant_iq.py`. On CUDA with Triton, `kernels/dequant.py` decodes the usual types with the same
results.
"""

from __future__ import annotations

import functools
import importlib.util
import math
from collections.abc import Callable, Mapping
from typing import Any, Literal

import torch
from torch import Tensor

from . import dequant_iq
from .bits import half, planes
from .errors import GGUFError
from .rows import ROW_TYPES, TAIL_BYTES, decode_rows
from .types import PLAIN_DTYPES, TYPES_BY_NAME

_CHUNK_ELEMENTS = {"cpu": 1 << 20}  # stays in cache
_CHUNK_ELEMENTS_DEVICE = 1 << 24  # 64 MiB of float32: few launches, bounded scratch


def dequantize(
    packed: Tensor, type: str, shape: tuple[int, ...], dtype: torch.dtype = torch.float32
) -> Tensor:
    """Decode packed weights.

    Args:
        packed: The stored bytes, uint8 of any shape; for plain types also the tensor itself.
        type: Storage type, such as `"Q4_K"` or `"BF16"`.
        shape: Logical shape of the result.
        dtype: Result type; the decoded float32 value is rounded to it once.

    Returns:
        The weights, shape `shape`, on the device of `packed`.

    Raises:
        GGUFError: If the type is unknown or the number of bytes does not fit the shape.
    """
    num_elements = math.prod(shape)
    if type in PLAIN_DTYPES:
        return _plain(packed, PLAIN_DTYPES[type], type, shape).to(dtype)
    if type in ROW_TYPES:
        return _rows(packed, type, shape, dtype)
    if type not in _DECODERS:
        raise GGUFError(
            f"weights of type {type!r} cannot be decoded. Known types: {', '.join(_DECODERS)}."
        )
    _, _, block, block_bytes = TYPES_BY_NAME[type]
    if packed.dtype != torch.uint8 or num_elements % block:
        raise GGUFError(
            f"{type} weights need uint8 bytes and a multiple of {block} elements, "
            f"not {packed.dtype} and shape {shape}."
        )
    if packed.numel() != num_elements // block * block_bytes:
        raise GGUFError(
            f"{type} weights of shape {shape} need {num_elements // block * block_bytes} bytes, "
            f"not {packed.numel()}."
        )
    out = torch.empty(num_elements // block, block, dtype=dtype, device=packed.device)
    kernels = triton_kernels("dequant", packed)
    if kernels is not None and type in kernels.KERNELS:
        kernels.dequantize_into(out, packed.contiguous(), type)
        return out.reshape(shape)
    blocks = packed.reshape(-1, block_bytes)
    decode = _DECODERS[type]
    step = _CHUNK_ELEMENTS.get(packed.device.type, _CHUNK_ELEMENTS_DEVICE) // block
    for start in range(0, len(blocks), step):
        out[start : start + step] = decode(blocks[start : start + step])
    return out.reshape(shape)


def _rows(packed: Tensor, type: str, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """Decode rows with a scale each; the first dimension counts the rows."""
    rows, row_len = shape[0], math.prod(shape[1:])
    if packed.dtype != torch.uint8 or packed.shape != (rows, row_len + TAIL_BYTES):
        raise GGUFError(
            f"{type} weights of shape {shape} need uint8 bytes of shape "
            f"{(rows, row_len + TAIL_BYTES)}, not {packed.dtype} and {tuple(packed.shape)}."
        )
    out = torch.empty(rows, row_len, dtype=dtype, device=packed.device)
    if (kernels := triton_kernels("rows", packed)) is not None:
        kernels.decode_into(out, packed.contiguous(), type)
        return out.reshape(shape)
    elements = _CHUNK_ELEMENTS.get(packed.device.type, _CHUNK_ELEMENTS_DEVICE)
    step = max(1, elements // max(1, row_len))
    for start in range(0, rows, step):
        out[start : start + step] = decode_rows(packed[start : start + step], type)
    return out.reshape(shape)


def triton_kernels(
    name: Literal["dequant", "rows", "int8", "int8_product"], tensor: Tensor
) -> Any | None:
    """Give the Triton kernels of `kernels/<name>.py` if they can run on a tensor, else None.

    They need CUDA and Triton. Torch's compiler gets the plain formulas.
    """
    if not tensor.is_cuda or torch.compiler.is_compiling() or not _has_triton():
        return None
    # Imported one at a time: Triton may be too old for one of them.
    if name == "int8":
        from .kernels import int8

        return int8
    if name == "int8_product":
        from .kernels import int8_product

        return int8_product
    if name == "rows":
        from .kernels import rows

        return rows
    from .kernels import dequant

    return dequant


@functools.cache
def _has_triton() -> bool:
    return importlib.util.find_spec("triton") is not None


def _plain(packed: Tensor, stored: torch.dtype, type: str, shape: tuple[int, ...]) -> Tensor:
    needed = math.prod(shape) * stored.itemsize
    have = packed.numel() * packed.dtype.itemsize
    if packed.dtype not in (stored, torch.uint8) or have != needed:
        raise GGUFError(
            f"{type} weights of shape {shape} need {needed} bytes, "
            f"not {have} bytes of {packed.dtype}."
        )
    if packed.dtype != stored:
        packed = packed.reshape(-1).view(stored)
    return packed.reshape(shape)


def _q4_0(b: Tensor) -> Tensor:
    q = planes(b[:, 2:], width=16, bits=4).to(torch.int8) - 8
    return half(b[:, :2]) * q.float()


def _q4_1(b: Tensor) -> Tensor:
    q = planes(b[:, 4:], width=16, bits=4).float()
    return half(b[:, :2]) * q + half(b[:, 2:4])


def _q5_0(b: Tensor) -> Tensor:
    high = planes(b[:, 2:6], width=1, bits=1)
    q = (planes(b[:, 6:], width=16, bits=4) | (high << 4)).to(torch.int8) - 16
    return half(b[:, :2]) * q.float()


def _q5_1(b: Tensor) -> Tensor:
    high = planes(b[:, 4:8], width=1, bits=1)
    q = planes(b[:, 8:], width=16, bits=4) | (high << 4)
    return half(b[:, :2]) * q.float() + half(b[:, 2:4])


def _q8_0(b: Tensor) -> Tensor:
    return b[:, 2:].view(torch.int8).float() * half(b[:, :2])


def _q2_k(b: Tensor) -> Tensor:
    scales = b[:, :16]
    scale = (half(b[:, 80:82]) * (scales & 15).float()).unsqueeze(2)
    low = (half(b[:, 82:84]) * (scales >> 4).float()).unsqueeze(2)
    q = planes(b[:, 16:80], width=32, bits=2).float().reshape(-1, 16, 16)
    return (scale * q - low).flatten(1)


def _q3_k(b: Tensor) -> Tensor:
    high_bits = planes(b[:, :32], width=32, bits=1)
    low_bits = planes(b[:, 32:96], width=32, bits=2)
    scales = planes(b[:, 96:104], width=8, bits=4)
    scales = scales | (planes(b[:, 104:108], width=4, bits=2) << 4)
    scale = half(b[:, 108:110]) * (scales.to(torch.int8) - 32).float()
    # a clear high bit means minus 4
    q = low_bits.to(torch.int8) - ((high_bits ^ 1) << 2).to(torch.int8)
    return (scale.unsqueeze(2) * q.float().reshape(-1, 16, 16)).flatten(1)


def _scale_min(s: Tensor) -> tuple[Tensor, Tensor]:
    """Unpack the 8 six-bit scales and 8 six-bit minima of Q4_K and Q5_K from `(n, 12)` bytes."""
    low, mid, mixed = s[:, :4], s[:, 4:8], s[:, 8:]
    scale = torch.cat((low & 63, (mixed & 15) | ((low >> 2) & 48)), dim=1)
    minimum = torch.cat((mid & 63, (mixed >> 4) | ((mid >> 2) & 48)), dim=1)
    return scale.float(), minimum.float()


def _scaled_with_min(b: Tensor, q: Tensor) -> Tensor:
    """Finish Q4_K and Q5_K: `d * scale * q - dmin * min` over 8 groups of 32."""
    scale, minimum = _scale_min(b[:, 4:16])
    scale = (half(b[:, :2]) * scale).unsqueeze(2)
    low = (half(b[:, 2:4]) * minimum).unsqueeze(2)
    return (scale * q.float().reshape(-1, 8, 32) - low).flatten(1)


def _q4_k(b: Tensor) -> Tensor:
    return _scaled_with_min(b, planes(b[:, 16:], width=32, bits=4))


def _q5_k(b: Tensor) -> Tensor:
    high = planes(b[:, 16:48], width=32, bits=1)
    return _scaled_with_min(b, planes(b[:, 48:], width=32, bits=4) | (high << 4))


def _q6_k(b: Tensor) -> Tensor:
    high = planes(b[:, 128:192], width=32, bits=2)
    q = (planes(b[:, :128], width=64, bits=4) | (high << 4)).to(torch.int8) - 32
    scale = half(b[:, 208:210]) * b[:, 192:208].view(torch.int8).float()
    return (scale.unsqueeze(2) * q.float().reshape(-1, 16, 16)).flatten(1)


def _trits(q: Tensor, width: int, count: int) -> Tensor:
    """Shift `count` base-3 digits of each byte to the top: byte * 3^k modulo 256."""
    q = q.reshape(len(q), -1, width)
    return torch.stack([q * 3**k for k in range(count)], dim=2).flatten(1)


def _tq1_0(b: Tensor) -> Tensor:
    digits = (_trits(b[:, :32], 32, 5), _trits(b[:, 32:48], 16, 5), _trits(b[:, 48:52], 4, 4))
    q = ((torch.cat(digits, dim=1).to(torch.int16) * 3) >> 8) - 1
    return half(b[:, 52:54]) * q.float()


def _tq2_0(b: Tensor) -> Tensor:
    q = planes(b[:, :64], width=32, bits=2).to(torch.int8) - 1
    return half(b[:, 64:66]) * q.float()


_DECODERS: Mapping[str, Callable[[Tensor], Tensor]] = {
    "Q4_0": _q4_0,
    "Q4_1": _q4_1,
    "Q5_0": _q5_0,
    "Q5_1": _q5_1,
    "Q8_0": _q8_0,
    "Q2_K": _q2_k,
    "Q3_K": _q3_k,
    "Q4_K": _q4_k,
    "Q5_K": _q5_k,
    "Q6_K": _q6_k,
    "TQ1_0": _tq1_0,
    "TQ2_0": _tq2_0,
    **dequant_iq.DECODERS,
}

BLOCK_TYPES = frozenset(_DECODERS)
"""Types of ggml that are stored as blocks of bytes."""
PACKED_TYPES = BLOCK_TYPES | ROW_TYPES.keys()
"""Types stored as bytes, in blocks or in rows; all others are plain torch dtypes."""
