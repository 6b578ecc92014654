"""Dequantisation of the types with lookup tables: IQ1 to IQ4, MXFP4, NVFP4.

The IQ grids (2 to 16 KB of codebook each) are read from the `gguf` package at the first use.
Order of operations as in `gguf.quants`, see `dequant.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from .bits import half, planes, words
from .errors import GGUFError

_IQ4_VALUES = (-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113)
_FP4_VALUES = (0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12)  # e2m1, doubled
_IQ1_DELTA = 0.125


def _grid(name: str, index: Tensor) -> Tensor:
    """Look up the codebook of a type: `index` `(n, k)` to `(n, k, 4 or 8)` float32."""
    try:
        from gguf import quants
    except ImportError as error:
        raise GGUFError(
            f"{name} weights need the 'gguf' package for their codebook. Install it with "
            "`pip install gguf`, or use a file of another quantisation such as Q4_K_M."
        ) from error
    table = getattr(quants, name)
    table.init_grid()
    grid = torch.tensor(table.grid.reshape(table.grid_shape), device=index.device)
    return grid[index.long()]


def _signs(bits: Tensor) -> Tensor:
    """Turn bytes `(n, k)` into factors `(n, k * 8)`: -1 where a bit is set, lowest bit first."""
    return 1 - 2 * planes(bits, width=1, bits=1).float()


def _even_signs(index: Tensor) -> Tensor:
    """Turn 7-bit indices `(n, k)` int32 into factors `(n, k * 8)`; the 8th makes the signs even."""
    bits = torch.stack([(index >> shift) & 1 for shift in range(7)], dim=2)
    bits = torch.cat((bits, bits.sum(dim=2, keepdim=True) & 1), dim=2)
    return 1 - 2 * bits.float().flatten(1)


def _fields(word: Tensor, shifts: tuple[int, ...], mask: int) -> Tensor:
    """Cut bit fields out of integers: `(n, k)` to `(n, k * len(shifts))`."""
    return torch.stack([(word >> shift) & mask for shift in shifts], dim=2).flatten(1)


def _combine(scale: Tensor, grid: Tensor, signs: Tensor) -> Tensor:
    """Return `scale * grid * signs`, the scale `(n, g)` spread over the 256 values of a block."""
    scale = scale.unsqueeze(2)
    values = grid.reshape(*scale.shape[:2], -1)
    return (scale * values * signs.reshape(values.shape)).flatten(1)


def _iq2_xxs(b: Tensor) -> Tensor:
    pairs = words(b[:, 2:], torch.int32).reshape(len(b), 8, 2)
    index = b[:, 2:].reshape(len(b), 8, 8)[:, :, :4].flatten(1)
    high = pairs[:, :, 1]
    scale = half(b[:, :2]) * (0.5 + ((high >> 28) & 15).float()) * 0.25
    signs = _even_signs(_fields(high, (0, 7, 14, 21), 127))
    return _combine(scale, _grid("IQ2_XXS", index), signs)


def _iq2_xs(b: Tensor) -> Tensor:
    q = words(b[:, 2:66], torch.int16).int()
    scale = half(b[:, :2]) * (0.5 + planes(b[:, 66:], width=1, bits=4).float()) * 0.25
    return _combine(scale, _grid("IQ2_XS", q & 511), _even_signs((q >> 9) & 127))


def _iq2_s(b: Tensor) -> Tensor:
    index = b[:, 2:34].int() | (planes(b[:, 66:74], width=1, bits=2).int() << 8)
    scale = half(b[:, :2]) * (0.5 + planes(b[:, 74:], width=1, bits=4).float()) * 0.25
    return _combine(scale, _grid("IQ2_S", index), _signs(b[:, 34:66]))


def _iq3_xxs(b: Tensor) -> Tensor:
    high = words(b[:, 66:], torch.int32)
    scale = half(b[:, :2]) * (0.5 + ((high >> 28) & 15).float()) * 0.5
    signs = _even_signs(_fields(high, (0, 7, 14, 21), 127))
    return _combine(scale, _grid("IQ3_XXS", b[:, 2:66]), signs)


def _iq3_s(b: Tensor) -> Tensor:
    index = b[:, 2:66].int() | (planes(b[:, 66:74], width=1, bits=1).int() << 8)
    scale = half(b[:, :2]) * (1 + 2 * planes(b[:, 106:], width=1, bits=4)).float()
    return _combine(scale, _grid("IQ3_S", index), _signs(b[:, 74:106]))


def _iq1_s(b: Tensor) -> Tensor:
    high = words(b[:, 34:], torch.int16).int()
    scale = half(b[:, :2]) * (2 * ((high >> 12) & 7) + 1).float()
    delta = torch.where((high & 0x8000) == 0, _IQ1_DELTA, -_IQ1_DELTA)
    index = b[:, 2:34].int() | (_fields(high, (0, 3, 6, 9), 7) << 8)
    grid = _grid("IQ1_S", index).reshape(len(b), 8, 32)
    return (scale.unsqueeze(2) * (grid + delta.unsqueeze(2))).flatten(1)


def _iq1_m(b: Tensor) -> Tensor:
    packed = words(b[:, 48:], torch.int16).int()
    # the float16 scale is spread over the top 4 bits of four words
    top = (packed >> 12) & 15
    d = top[:, 0] | (top[:, 1] << 4) | (top[:, 2] << 8) | (top[:, 3] << 12)
    d = d.to(torch.int16).view(torch.float16).float().unsqueeze(1)
    scale = d * (2 * _fields(packed, (0, 3, 6, 9), 7) + 1).float()
    high = planes(b[:, 32:48], width=1, bits=4)
    index = b[:, :32].int() | ((high & 7).int() << 8)
    delta = torch.where((high & 8) == 0, _IQ1_DELTA, -_IQ1_DELTA)
    grid = _grid("IQ1_M", index) + delta.unsqueeze(2)
    return (scale.unsqueeze(2) * grid.reshape(len(b), 16, 16)).flatten(1)


def _lookup(values: tuple[int, ...], index: Tensor) -> Tensor:
    return torch.tensor(values, dtype=torch.float32, device=index.device)[index.long()]


def _iq4_nl(b: Tensor) -> Tensor:
    return half(b[:, :2]) * _lookup(_IQ4_VALUES, planes(b[:, 2:], width=16, bits=4))


def _iq4_xs(b: Tensor) -> Tensor:
    scales = planes(b[:, 4:8], width=1, bits=4) | (planes(b[:, 2:4], width=1, bits=2) << 4)
    scale = half(b[:, :2]) * (scales.to(torch.int8) - 32).float()
    q = _lookup(_IQ4_VALUES, planes(b[:, 8:], width=16, bits=4))
    return (scale.unsqueeze(2) * q.reshape(-1, 8, 32)).flatten(1)


def _mxfp4(b: Tensor) -> Tensor:
    e = b[:, :1].int()
    # e8m0, halved because the values are doubled; the two smallest exponents are subnormal
    bits = torch.where(e < 2, 0x00200000 << e, (e - 1) << 23)
    return bits.view(torch.float32) * _lookup(_FP4_VALUES, planes(b[:, 1:], width=16, bits=4))


def _nvfp4(b: Tensor) -> Tensor:
    x = b[:, :4].int()
    exponent, mantissa = (x >> 3) & 15, (x & 7).float()
    power = ((exponent + 120) << 23).view(torch.float32)  # 2 ** (exponent - 7)
    raw = torch.where(exponent == 0, mantissa * 2.0**-9, (1 + mantissa / 8) * power)
    scale = torch.where((x == 0) | (x == 0x7F), 0.0, raw * 0.5)
    q = _lookup(_FP4_VALUES, planes(b[:, 4:], width=8, bits=4))
    return (scale.unsqueeze(2) * q.reshape(-1, 4, 16)).flatten(1)


DECODERS: Mapping[str, Callable[[Tensor], Tensor]] = {
    "IQ1_S": _iq1_s,
    "IQ1_M": _iq1_m,
    "IQ2_XXS": _iq2_xxs,
    "IQ2_XS": _iq2_xs,
    "IQ2_S": _iq2_s,
    "IQ3_XXS": _iq3_xxs,
    "IQ3_S": _iq3_s,
    "IQ4_NL": _iq4_nl,
    "IQ4_XS": _iq4_xs,
    "MXFP4": _mxfp4,
    "NVFP4": _nvfp4,
}
