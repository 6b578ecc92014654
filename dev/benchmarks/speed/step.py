"""A sampling step of one, two and three passes: its time, and how often each weight is decoded."""

from __future__ import annotations

from ....multitalk_core.model.dit import MultiTalkModel
from .bench import Bench, log
from .counting import CountingOps, Transfers, decodings
from .floor import device_rates
from .flops import floor_seconds
from .report import Column, Table
from .sampling import block_bytes, sample, stream
from .weights import random_model

TITLE = "a step of one speaker, Q4_K base and Q8_0 adapter"
COLUMNS = (
    Column("weights", "blocks"),
    Column("passes", "passes", 0),
    Column("seconds", "s"),
    Column("of_floor", "times the floor of the passes"),
    Column("of_one", "times one pass, per pass"),
    Column("decodings", "decodings per weight", 2),
    Column("transfers", "transfers per weight", 2),
)
_STEPS = 2


def measure(bench: Bench, table: Table) -> None:
    """Time steps with resident blocks, then with streamed ones."""
    device_rates(bench)
    model = random_model(
        bench.scale.config, base="Q4_K", adapter="Q8_0", device=bench.device, ops=CountingOps()
    )
    ones: dict[str, float] = {}
    for weights, passes in (("resident", (1, 2, 3)), ("streamed", (1, 3))):
        if weights == "streamed":
            stream(bench, model)
        for count in passes:
            if bench.late():
                table.notes.append(f"The time limit left out {weights} of {count} passes.")
                continue
            log(f"step: {weights}, {count} passes")
            _row(bench, table, model, ones, weights=weights, passes=count)


def _row(
    bench: Bench,
    table: Table,
    model: MultiTalkModel,
    ones: dict[str, float],
    *,
    weights: str,
    passes: int,
) -> None:
    """Count in a first step, which is also the warm-up, then time further steps."""
    decodings(model)
    with Transfers() as transfers:
        sample(bench, model, passes=passes, steps=1, num_speakers=1)
    decoded = decodings(model)
    seconds = sample(bench, model, passes=passes, steps=_STEPS, num_speakers=1).step
    if passes == 1:
        ones[weights] = seconds.median
    floor = passes * floor_seconds(bench.flops(num_speakers=1), device_rates(bench))
    one = ones.get(weights)
    moved = weights == "streamed" and bench.device.type != "cpu"
    table.add(
        weights=weights,
        passes=passes,
        blocks=bench.scale.config.num_layers,
        seconds=seconds,
        of_floor=seconds.median / floor,
        of_one=None if one is None else seconds.median / passes / one,
        decodings=decoded,
        transfers=transfers.bytes / block_bytes(model) if moved else None,
    )
