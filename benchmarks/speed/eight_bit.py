"""The fast 8-bit linear layers against bfloat16: time, and how far the result moves.

At the tiny scale also the latents after a whole run of steps, beside what bfloat16 itself does to
those of float32.
"""

from __future__ import annotations

import dataclasses
import inspect
from typing import Any

import torch
from torch import Tensor

from ...wan_gguf_loader.ops import gguf_ops
from .bench import Bench, log, release
from .forward import Timed, timed_forward
from .report import Column, Table
from .sampling import sample
from .scales import SCALES
from .weights import random_model

TITLE = "fast 8-bit linear layers, Q4_K base and Q8_0 adapter"
COLUMNS = (
    Column("what", "what"),
    Column("blocks", "blocks", 0),
    Column("seconds", "s"),
    Column("of_plain", "times bfloat16"),
    Column("error", "relative error", 5),
    Column("against", "against"),
    Column("peak", "peak, GB", 2, 1e-9),
)
_STEPS = 20


def fast_ops() -> Any | None:
    """Give the layers that multiply in 8 bits, if the loader offers them."""
    options: dict[str, Any] = {"linear": "fp8"}
    return gguf_ops(**options) if "linear" in inspect.signature(gguf_ops).parameters else None


def measure(bench: Bench, table: Table) -> None:
    """Compare forwards at full size and whole runs at the tiny one."""
    if fast_ops() is None:
        table.notes.append("The loader has no fast 8-bit layers.")
    else:
        _forwards(bench, table)
    _runs(bench, table)


def relative_error(value: Tensor, reference: Tensor) -> float:
    """Give the norm of the difference over that of the reference."""
    return float((value.float() - reference.float()).norm() / reference.float().norm())


def _forwards(bench: Bench, table: Table) -> None:
    done: dict[str, Timed] = {}
    for name, ops in (("bfloat16", gguf_ops()), ("8-bit", fast_ops())):
        log(f"8bit: forward, {name}")
        model = random_model(
            bench.scale.config, base="Q4_K", adapter="Q8_0", device=bench.device, ops=ops
        )
        done[name] = timed_forward(bench, model, num_speakers=1)
        del model
        release(bench.device)
        plain = done["bfloat16"]
        table.add(
            what=f"forward, {name}",
            blocks=bench.scale.config.num_layers,
            seconds=done[name].seconds,
            of_plain=done[name].seconds.median / plain.seconds.median,
            error=relative_error(done[name].velocity, plain.velocity),
            against="bfloat16",
            peak=done[name].peak,
        )


def _runs(bench: Bench, table: Table) -> None:
    """Sample the same segment in float32, in bfloat16 and with fast layers."""
    scale = bench.scale if bench.scale.name == "tiny" else SCALES["tiny"]
    wholes: dict[str, Tensor] = {}
    cases = (
        ("float32", torch.float32, gguf_ops(), "float32"),
        ("bfloat16", torch.bfloat16, gguf_ops(), "float32"),
        ("8-bit", torch.bfloat16, fast_ops(), "bfloat16"),
    )
    for name, dtype, ops, against in cases:
        if ops is None:
            continue
        log(f"8bit: {_STEPS} steps, {name}")
        tiny = dataclasses.replace(bench, scale=scale, dtype=dtype)
        model = random_model(
            tiny.scale.config, base="Q4_K", adapter="Q8_0", device=bench.device, ops=ops
        )
        run = sample(tiny, model, passes=1, steps=_STEPS, num_speakers=1)
        wholes[name] = run.latents
        table.add(
            what=f"latents of {_STEPS} steps, tiny, {name}",
            blocks=tiny.scale.config.num_layers,
            error=relative_error(run.latents, wholes[against]),
            against=against,
        )
