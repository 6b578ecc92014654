"""One forward of the whole model, by the type of its weights and the number of speakers."""

from __future__ import annotations

from collections import deque
from typing import NamedTuple

from torch import Tensor

from ....multitalk_core.model.dit import MultiTalkModel
from .bench import Bench, log, release, shortened
from .floor import device_rates
from .flops import floor_seconds
from .measure import Spread, allocated, now, peak_memory, timed
from .report import Column, Table
from .weights import random_model

TITLE = "one forward, by the types of the weights in the blocks"
COLUMNS = (
    Column("base", "base"),
    Column("adapter", "adapter"),
    Column("speakers", "speakers", 0),
    Column("blocks", "blocks", 0),
    Column("attention", "attention"),
    Column("seconds", "s"),
    Column("of_floor", "times the floor"),
    Column("of_plain", "times BF16 weights"),
    Column("of_one", "times one speaker"),
    Column("peak", "peak, GB", 2, 1e-9),
    Column("weights", "of it weights, GB", 2, 1e-9),
    Column("velocity_std", "spread of the velocity", 2),
)
_MODELS = (("BF16", "BF16"), ("Q4_K", "Q8_0"), ("Q8_0", "Q8_0"))
"""Types of base and adapter; the first is what the others are compared with."""


class Timed(NamedTuple):
    """A forward.

    Attributes:
        seconds: Of the calls.
        peak: Highest allocated bytes of the card.
        velocity: What it gave, float32.
    """

    seconds: Spread
    peak: int | None
    velocity: Tensor


def measure(bench: Bench, table: Table) -> None:
    """Time all combinations, as far as the time goes."""
    device_rates(bench)
    medians: dict[tuple[str, int], float] = {}
    for base, adapter in _MODELS:
        if bench.late():
            table.notes.append(f"The time limit left out {base}.")
            continue
        began = now(bench.device)
        model = random_model(bench.scale.config, base=base, adapter=adapter, device=bench.device)
        log(f"forward: {base} drawn in {now(bench.device) - began:.1f} s")
        weights = allocated(bench.device)
        for speakers in (1, 2):
            done = timed_forward(bench, model, num_speakers=speakers)
            medians[base, speakers] = done.seconds.median
            table.add(
                base=base,
                adapter=adapter,
                speakers=speakers,
                blocks=bench.scale.config.num_layers,
                attention=bench.attention.name,
                seconds=done.seconds,
                **_ratios(bench, medians, base=base, speakers=speakers),
                peak=done.peak,
                weights=weights,
                velocity_std=float(done.velocity.std()),
            )
        del model
        release(bench.device)


def timed_forward(bench: Bench, model: MultiTalkModel, *, num_speakers: int) -> Timed:
    """Warm up with the first blocks, then time whole forwards.

    Raises:
        ArithmeticError: If the velocity is not finite.
    """
    inputs = bench.inputs(model, num_speakers=num_speakers)
    velocities: deque[Tensor] = deque(maxlen=1)
    with shortened(model):
        model(**inputs)
    with peak_memory(bench.device) as peak:
        seconds = timed(
            lambda: velocities.append(model(**inputs)),
            device=bench.device,
            least=bench.repeats,
            most=bench.repeats,
        )
    velocity = velocities[0].float()
    if not bool(velocity.isfinite().all()):
        raise ArithmeticError("the velocity is not finite")
    return Timed(seconds, peak.bytes, velocity)


def _ratios(
    bench: Bench, medians: dict[tuple[str, int], float], *, base: str, speakers: int
) -> dict[str, float | None]:
    """Put a time beside the floor, plain weights and one speaker."""
    floor = floor_seconds(bench.flops(num_speakers=speakers), device_rates(bench))
    median = medians[base, speakers]
    return {
        "of_floor": median / floor,
        "of_plain": _ratio(median, medians.get((_MODELS[0][0], speakers))),
        "of_one": _ratio(median, medians.get((base, 1))),
    }


def _ratio(value: float, other: float | None) -> float | None:
    return None if other is None else value / other
