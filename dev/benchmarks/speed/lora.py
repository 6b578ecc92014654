"""The cost of three LoRAs on every linear layer of the blocks in one forward."""

from __future__ import annotations

from .bench import Bench, log
from .forward import timed_forward
from .report import Column, Table
from .weights import add_loras, random_model

TITLE = "one forward with LoRAs on every linear layer of the blocks, Q4_K base and Q8_0 adapter"
COLUMNS = (
    Column("loras", "LoRAs", 0),
    Column("rank", "rank", 0),
    Column("blocks", "blocks", 0),
    Column("seconds", "s"),
    Column("of_none", "times none"),
    Column("peak", "peak, GB", 2, 1e-9),
    Column("change", "change of the velocity, relative"),
)
_COUNT, _RANK = 3, 64


def measure(bench: Bench, table: Table) -> None:
    """Time the same forward without and with LoRAs."""
    model = random_model(bench.scale.config, base="Q4_K", adapter="Q8_0", device=bench.device)
    blocks = bench.scale.config.num_layers
    log("lora: without")
    plain = timed_forward(bench, model, num_speakers=1)
    table.add(loras=0, blocks=blocks, seconds=plain.seconds, of_none=1.0, peak=plain.peak)
    add_loras(model, count=_COUNT, rank=_RANK)
    log(f"lora: with {_COUNT}")
    changed = timed_forward(bench, model, num_speakers=1)
    table.add(
        loras=_COUNT,
        rank=_RANK,
        blocks=blocks,
        seconds=changed.seconds,
        of_none=changed.seconds.median / plain.seconds.median,
        peak=changed.peak,
        change=float((changed.velocity - plain.velocity).norm() / plain.velocity.norm()),
    )
