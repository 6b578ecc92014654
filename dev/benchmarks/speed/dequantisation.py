"""Decoding one feed-forward weight of every packed type, against the device's copy rate.

At least the packed bytes are read and two bytes a weight written. Several weights take turns, so
that they do not stay in a cache. Some rows of each are compared with plain torch on the CPU, whose
float32 result is rounded to bfloat16 once.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ....wan_gguf_loader.dequant import PACKED_TYPES, dequantize
from ....wan_gguf_loader.errors import GGUFError
from .bench import Bench, log
from .floor import device_rates
from .measure import Spread, timed
from .packing import random_packed
from .report import Column, Table

TITLE = "decoding one weight to bfloat16"
COLUMNS = (
    Column("type", "type"),
    Column("shape", "weight"),
    Column("seconds", "ms", 3, 1e3),
    Column("rate", "GB/s that must move", 0, 1e-9),
    Column("of_copy", "share of the copy rate", 2),
    Column("equal", "equal to the reference, bit for bit"),
    Column("remark", ""),
)
_DTYPE = torch.bfloat16
_TURNS = 4
_CHECKED_ROWS = 256
_COMMON = ("Q8_0", "Q6_K", "Q5_K", "Q4_K", "Q3_K", "Q2_K", "Q5_1", "Q5_0", "Q4_1", "Q4_0")
"""Types of the published Wan files. They come first, in case the time limit is reached."""
_SECONDS = 0.15


def measure(bench: Bench, table: Table) -> None:
    """Time every type until the time limit."""
    copy = device_rates(bench).copy
    rows, columns = bench.scale.weight
    for type in (*_COMMON, *sorted(PACKED_TYPES - set(_COMMON))):
        shape = {"type": type, "shape": f"{rows}x{columns}"}
        if bench.late():
            table.notes.append(f"The time limit left out {type} and what follows.")
            break
        log(f"dequantisation: {type}")
        try:
            weights = _weights(bench, type)
        except GGUFError as error:
            table.add(**shape, remark=str(error))
            continue
        seconds = _timed(bench, weights, type)
        moved = weights[0].nbytes + rows * columns * _DTYPE.itemsize
        rate = moved / seconds.median
        equal = all(_is_reference(bench, one, type) for one in weights)
        table.add(**shape, seconds=seconds, rate=rate, of_copy=rate / copy, equal=equal)
    unequal = [row["type"] for row in table.rows if row.get("equal") is False]
    if unequal:
        raise ArithmeticError(f"decoded otherwise than the reference: {', '.join(unequal)}")


def reference(packed: Tensor, type: str, shape: tuple[int, int]) -> Tensor:
    """Decode in plain torch on the CPU, in float32, and round once."""
    return dequantize(packed.cpu(), type, shape, dtype=torch.float32).to(_DTYPE)


def _weights(bench: Bench, type: str) -> list[Tensor]:
    """Draw the packed weights that take turns."""
    std = bench.scale.weight[1] ** -0.5
    generator = bench.generator()
    return [
        random_packed(type, bench.scale.weight, std=std, generator=generator) for _ in range(_TURNS)
    ]


def _timed(bench: Bench, weights: list[Tensor], type: str) -> Spread:
    """Time all weights together and divide by their number, so that launches overlap."""

    def decode_all() -> None:
        for packed in weights:
            dequantize(packed, type, bench.scale.weight, dtype=_DTYPE)

    decode_all()
    return timed(decode_all, device=bench.device, seconds=_SECONDS, least=5) / _TURNS


def _is_reference(bench: Bench, packed: Tensor, type: str) -> bool:
    """Compare the first and the last rows of a decoded weight with the reference."""
    rows, columns = bench.scale.weight
    decoded = dequantize(packed, type, (rows, columns), dtype=_DTYPE)
    half = min(_CHECKED_ROWS, rows) // 2
    for part in (slice(0, half), slice(rows - half, rows)):
        expected = reference(packed[part], type, (half, columns))
        if not torch.equal(_bits(decoded[part].cpu()), _bits(expected)):
            return False
    return True


def _bits(values: Tensor) -> Tensor:
    """Give the bits, so that NaN equals itself and zeros of different sign differ."""
    return values.contiguous().view(torch.int16)
