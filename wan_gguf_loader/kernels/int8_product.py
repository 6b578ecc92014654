"""The product of two int8 matrices on Hopper, by Gluon, Triton's lower level; see `..int8`.

What limits an int8 product there is the way from the second cache to the multiprocessors, so the
tile is as large as the registers allow: 192 x 256, a third of its rows for each of three groups of
four warps. One more warp brings the next tiles by the copy engine while those multiply. One program
a multiprocessor goes from tile to tile; the scales and the bias are applied before the only write.
On an H100 1400 to 1480 TOPS, where Triton's own pipeline reached 1170 to 1230 with 128 x 256.

Gluon has no interpreter: tests compile this without a card, and compare numbers on one.
"""

from __future__ import annotations

import functools

import torch
import triton
from torch import Tensor
from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import (
    fence_async_shared,
    mbarrier,
    tma,
    warpgroup_mma,
    warpgroup_mma_wait,
)
from triton.experimental.gluon.nvidia.hopper import TensorDescriptor

COLUMNS_AT_ONCE = 256
ROWS_AT_ONCE = 192
_STAGES = 3
"""Tiles in flight: more do not fit beside what is written."""

# Triton 3.8 names them anew, and warns of the old names.
_bring = getattr(tma, "async_load", None) or tma.async_copy_global_to_shared
_send = getattr(tma, "async_store", None) or tma.async_copy_shared_to_global


def linear(
    x: Tensor,
    x_scale: Tensor,
    weight: Tensor,
    weight_scale: Tensor,
    bias: Tensor | None,
    *,
    dtype: torch.dtype,
) -> Tensor:
    """Multiply `(M, K)` by `(N, K)` with their scales, `(M, 1)` and `(N, 1)`; gives `(M, N)`.

    N must be a multiple of 256, and K of 16; the result is of 16 bits.
    """
    (num_rows, depth), columns = x.shape, weight.shape[0]
    out = torch.empty(num_rows, columns, device=x.device, dtype=dtype)
    if bias is None:
        bias = weight_scale.new_zeros(columns)
    tiles = triton.cdiv(num_rows, ROWS_AT_ONCE) * (columns // COLUMNS_AT_ONCE)
    programs = min(torch.cuda.get_device_properties(x.device).multi_processor_count, tiles)
    _linear[(programs,)](
        _described(x, 64, 128), _described(weight, COLUMNS_AT_ONCE, 128), _described(out, 64, 64),
        x_scale, weight_scale, bias, num_rows, columns, depth,
        PROGRAMS=programs, STAGES=_STAGES, num_warps=4,
    )  # fmt: skip
    return out


def _described(tensor: Tensor, rows: int, columns: int) -> TensorDescriptor:
    """Describe a matrix, and the part of it that moves at once, to the copy engine."""
    return TensorDescriptor.from_tensor(
        tensor, [rows, columns], part_layout(rows, columns, tensor.dtype)
    )


@functools.cache
def part_layout(rows: int, columns: int, dtype: torch.dtype) -> gl.NVMMASharedLayout:
    """Give how a part of a matrix lies in shared memory."""
    kind = {torch.int8: gl.int8, torch.bfloat16: gl.bfloat16, torch.float16: gl.float16}[dtype]
    return gl.NVMMASharedLayout.get_default_for([rows, columns], kind)


@gluon.jit
def _linear(
    x, weight, out, x_scale, weight_scale, bias, num_rows, num_columns, depth,
    PROGRAMS: gl.constexpr, STAGES: gl.constexpr,
):  # fmt: skip
    rows = gl.allocate_shared_memory(gl.int8, [3 * STAGES, 64, 128], x.layout)
    columns = gl.allocate_shared_memory(gl.int8, [STAGES, 256, 128], weight.layout)
    done = gl.allocate_shared_memory(out.dtype, [6, 64, 64], out.layout)
    full = gl.allocate_shared_memory(gl.int64, [STAGES, 1], mbarrier.MBarrierLayout())
    empty = gl.allocate_shared_memory(gl.int64, [STAGES, 1], mbarrier.MBarrierLayout())
    for stage in gl.static_range(STAGES):
        mbarrier.init(full.index(stage), count=1)
        mbarrier.init(empty.index(stage), count=3)
    given = (rows, columns, full, empty, num_rows, num_columns, depth, PROGRAMS, STAGES)
    wanted = (out, done, x_scale, weight_scale, bias)
    gl.warp_specialize(
        [
            (_multiply, (given, wanted, gl.constexpr(0))),
            (_multiply, (given, wanted, gl.constexpr(1))),
            (_multiply, (given, wanted, gl.constexpr(2))),
            (_load, (given, x, weight)),
        ],
        [4, 4, 1],
        [160, 160, 24],  # registers: those of a multiplying group hold 128 sums each
    )


@gluon.jit
def _place(tile, num_rows, num_columns):
    """Say where a tile begins: eight tiles down, then the next column, for the cache."""
    down, across = gl.cdiv(num_rows, 192), num_columns // 256
    first = tile // (8 * across) * 8
    high = gl.minimum(down - first, 8)
    row = (first + tile % (8 * across) % high) * 192
    return row, tile % (8 * across) // high * 256


@gluon.jit
def _load(given, x, weight):
    """Bring the parts of all tiles, as soon as there is room."""
    rows, columns, full, empty, num_rows, num_columns, depth, programs, stages = given
    step = 0
    for tile in range(gl.program_id(0), gl.cdiv(num_rows, 192) * (num_columns // 256), programs):
        row, column = _place(tile, num_rows, num_columns)
        for at in range(0, depth, 128):
            stage = step % stages
            mbarrier.wait(empty.index(stage), (step // stages & 1) ^ 1)
            mbarrier.expect(full.index(stage), (192 + 256) * 128)
            _bring(weight, [column, at], full.index(stage), columns.index(stage))
            for group in gl.static_range(3):
                part = rows.index(3 * stage + group)
                _bring(x, [row + 64 * group, at], full.index(stage), part)
            step += 1


@gluon.jit
def _multiply(given, wanted, GROUP: gl.constexpr):
    """Multiply 64 rows of every tile, and write what they give."""
    rows, columns, full, empty, num_rows, num_columns, depth, programs, stages = given
    out, done, x_scale, weight_scale, bias = wanted
    sums: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, 128, 32])
    quarter: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, 64, 32])
    step = 0
    for tile in range(gl.program_id(0), gl.cdiv(num_rows, 192) * (num_columns // 256), programs):
        row, column = _place(tile, num_rows, num_columns)
        row += 64 * GROUP
        total = gl.zeros((64, 256), gl.int32, sums)
        for at in range(0, depth, 128):
            stage = step % stages
            mbarrier.wait(full.index(stage), step // stages & 1)
            part = rows.index(3 * stage + GROUP)
            total = warpgroup_mma(part, columns.index(stage).permute((1, 0)), total, is_async=True)
            # The product before this one is done with its stage.
            total = warpgroup_mma_wait(1, deps=(total,))
            mbarrier.arrive(empty.index((step + stages - 1) % stages), pred=at > 0)
            step += 1
        total = warpgroup_mma_wait(0, deps=(total,))
        mbarrier.arrive(empty.index((step + stages - 1) % stages))
        own = row + gl.arange(0, 64, layout=gl.SliceLayout(1, quarter))
        scale = gl.load(x_scale + own, mask=own < num_rows, other=0.0)
        left, right = _halves(total, 256)
        first, second = _halves(left, 128)
        third, fourth = _halves(right, 128)
        _finish(first, scale, weight_scale, bias, out, row, column, done, 2 * GROUP)
        _finish(second, scale, weight_scale, bias, out, row, column + 64, done, 2 * GROUP + 1)
        _finish(third, scale, weight_scale, bias, out, row, column + 128, done, 2 * GROUP)
        _finish(fourth, scale, weight_scale, bias, out, row, column + 192, done, 2 * GROUP + 1)
    tma.store_wait(0)


@gluon.jit
def _halves(value, WIDTH: gl.constexpr):
    """Cut columns in two; no number moves."""
    left, right = value.reshape([64, 2, WIDTH // 2]).permute([0, 2, 1]).split()
    layout: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, WIDTH // 2, 32])
    return (
        gl.convert_layout(left, layout, assert_trivial=True),
        gl.convert_layout(right, layout, assert_trivial=True),
    )


@gluon.jit
def _finish(sums, scale, weight_scale, bias, out, row, column, done, buffer):
    """Scale 64 columns, add the bias and have them written; rows beyond the last are left out."""
    layout: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, 64, 32])
    own = gl.arange(0, 64, layout=gl.SliceLayout(0, layout))
    value = sums.to(gl.float32) * scale[:, None] * gl.load(weight_scale + column + own)[None, :]
    value += gl.load(bias + column + own).to(gl.float32)[None, :]
    tma.store_wait(1)  # the write before the last has left this buffer
    done.index(buffer).store(value.to(out.dtype))
    fence_async_shared()
    _send(out, [row, column], done.index(buffer))
