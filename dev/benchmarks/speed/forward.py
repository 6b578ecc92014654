"""One forward of the whole model, by the type of its weights and the number of speakers."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from ....multitalk_core.model.dit import MultiTalkModel
from .bench import Bench, log, release, shortened
from .floor import device_rates
from .flops import floor_seconds
from .measure import Spread, allocated, now, peak, start_peak, timed
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
    Column("weights", "weights, GB", 2, 1e-9),
    Column("velocity_std", "spread of the velocity", 2),
)
_MODELS = (
    ("BF16", "BF16"),
    ("Q4_K", "Q8_0"),
    ("Q8_0", "Q8_0"),
    ("F8_E4M3_ROWS", "F8_E4M3_ROWS"),
    ("I8_ROWS", "I8_ROWS"),
)
"""Types of base and adapter; the others are compared with the first."""


class Timed(NamedTuple):
    """A timed forward.

    Attributes:
        seconds: Time of the calls.
        peak: Highest allocated bytes of the card.
        velocity: Its result, float32.
    """

    seconds: Spread
    peak: int | None
    velocity: Tensor


def measure(bench: Bench, table: Table) -> None:
    """Time all combinations until the time limit."""
    rates = device_rates(bench)
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
            median = medians[base, speakers] = done.seconds.median
            floor = floor_seconds(bench.flops(num_speakers=speakers), rates)
            table.add(
                base=base,
                adapter=adapter,
                speakers=speakers,
                blocks=bench.scale.config.num_layers,
                attention=bench.attention.name,
                seconds=done.seconds,
                of_floor=median / floor,
                of_plain=median / medians[_MODELS[0][0], speakers],
                of_one=median / medians[base, 1],
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
    velocity = torch.empty(0)

    def forward() -> None:
        nonlocal velocity
        velocity = model(**inputs)

    with shortened(model):
        model(**inputs)
    start_peak(bench.device)
    seconds = timed(forward, device=bench.device, least=bench.repeats, most=bench.repeats)
    highest = peak(bench.device)
    velocity = velocity.float()
    if not bool(velocity.isfinite().all()):
        raise ArithmeticError("the velocity is not finite")
    return Timed(seconds, highest, velocity)
