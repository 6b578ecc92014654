"""Highest rates of the device on random data, and the shortest forward that they allow."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as functional
from torch.nn.attention import SDPBackend, sdpa_kernel

from ....multitalk_core.errors import InputError
from ....multitalk_core.model.attention import Attend, attend
from ....multitalk_core.model.backends import video_attention
from .bench import Bench, log
from .flops import Rates, attention_flops, floor_seconds
from .measure import timed
from .report import Column, Table

TITLE = "rates of the device on random data, and the least time of a forward"
COLUMNS = (
    Column("what", "what"),
    Column("rate", "rate", 1),
    Column("unit", "unit"),
    Column("seconds", "ms", 3, 1e3),
    Column("remark", ""),
)
_BACKENDS = {
    "torch's cuDNN": SDPBackend.CUDNN_ATTENTION,
    "torch's flash": SDPBackend.FLASH_ATTENTION,
    "torch's efficient": SDPBackend.EFFICIENT_ATTENTION,
}
_COPY_BYTES = {"cuda": 2 << 30, "cpu": 64 << 20}
_SECONDS = 0.6
"""How long each rate is measured. A card throttles only after some time."""


def measure(bench: Bench, table: Table) -> None:
    """Measure all rates, then compute the floor of one and two speakers from the fastest."""
    bench.rates = None
    rates = device_rates(bench, table)
    for name, backend in _BACKENDS.items():
        if bench.late():
            table.notes.append("The time limit left out attention backends.")
            break
        try:
            with sdpa_kernel([backend]):
                rate = _attention(bench, table, attend, name=name)
        except RuntimeError as error:
            reason = str(error).splitlines()[0]
            table.add(what=f"attention, {name}", remark=f"not offered: {reason}")
        else:
            rates = rates._replace(attention=max(rates.attention, rate))
    bench.rates = rates
    for speakers in (1, 2):
        flops = bench.flops(num_speakers=speakers)
        seconds = floor_seconds(flops, rates)
        table.add(
            what=f"floor of a forward, {speakers} speaker{'s' * (speakers > 1)}",
            rate=flops.total / seconds / 1e12,
            unit="TFLOP/s",
            seconds=seconds,
            remark=f"{flops.linears / 1e12:.4g} TFLOP of linears, "
            f"{flops.attention / 1e12:.4g} of attention",
            **flops._asdict(),
        )


def device_rates(bench: Bench, table: Table | None = None) -> Rates:
    """Give the rates of the device; measure them, with a row each, if this run has not yet."""
    table = table or Table("floor")
    if bench.rates is None:
        log("rates of the device")
        dim, ffn = bench.scale.config.dim, bench.scale.config.ffn_dim
        bench.rates = Rates(
            square=_product(bench, table, outputs=dim, inputs=dim),
            ffn_in=_product(bench, table, outputs=ffn, inputs=dim),
            ffn_out=_product(bench, table, outputs=dim, inputs=ffn),
            attention=_best_attention(bench, table),
            copy=_copy(bench, table),
        )
    return bench.rates


def _product(bench: Bench, table: Table, *, outputs: int, inputs: int) -> float:
    rows = bench.scale.num_tokens
    x, weight = bench.normal(rows, inputs), bench.normal(outputs, inputs, seed=1)
    bias = bench.normal(outputs, seed=2)
    weight.mul_(inputs**-0.5)
    return measure_rate(
        bench,
        table,
        lambda: functional.linear(x, weight, bias),
        what=f"product, {rows} tokens, {outputs}x{inputs} weight",
        work=2 * rows * inputs * outputs,
    )


def _best_attention(bench: Bench, table: Table | None) -> float:
    """Give the higher rate of torch's choice and flash-attn-4, if that is installed."""
    rate = _attention(bench, table, attend, name="torch's choice")
    try:
        flash = video_attention("flash", device=bench.device, dtype=bench.dtype)
    except InputError as error:
        table.add(what="attention, flash-attn-4", remark=f"not offered: {error}")
        return rate
    return max(rate, _attention(bench, table, flash.attend, name="flash-attn-4"))


def _attention(bench: Bench, table: Table, attend: Attend, *, name: str) -> float:
    config, tokens = bench.scale.config, bench.scale.num_tokens
    heads, width = config.num_heads, config.head_dim
    q, k, v = (bench.normal(1, tokens, heads, width, seed=i) for i in range(3))
    return measure_rate(
        bench,
        table,
        lambda: attend(q, k, v),
        what=f"attention, {name}, {tokens} tokens, {heads} heads of {width}",
        work=attention_flops(tokens, tokens, config.dim),
    )


def _copy(bench: Bench, table: Table | None) -> float:
    count = _COPY_BYTES.get(bench.device.type, _COPY_BYTES["cpu"]) // bench.dtype.itemsize
    source = bench.normal(count)
    target = torch.empty_like(source)
    return measure_rate(
        bench,
        table,
        lambda: target.copy_(source),
        what="copy",
        work=2 * source.nbytes,
        unit="TB/s",
    )


def measure_rate(
    bench: Bench,
    table: Table,
    call: Callable[[], object],
    *,
    what: str,
    work: int,
    unit: str = "TFLOP/s",
) -> float:
    """Time a call, add its row and give its work per second."""
    call()
    seconds = timed(call, device=bench.device, seconds=_SECONDS, most=200)
    rate = work / seconds.median
    table.add(what=what, rate=rate / 1e12, unit=unit, seconds=seconds)
    return rate
