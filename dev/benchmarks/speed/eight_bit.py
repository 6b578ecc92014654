"""Linear layers in int8 compared with bfloat16: time and error.

At the tiny scale also the error of the latents after all steps, next to the error that bfloat16
alone makes.
"""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor

from ....wan_gguf_loader.ops import GGUFOps
from .bench import Bench, log, release
from .forward import Timed, timed_forward
from .report import Column, Table
from .sampling import sample
from .scales import SCALES, Scale
from .weights import random_model

TITLE = "linear layers in int8, Q4_K base and Q8_0 adapter"
COLUMNS = (
    Column("what", "what"),
    Column("blocks", "blocks", 0),
    Column("seconds", "s"),
    Column("of_plain", "times bfloat16"),
    Column("error", "relative error", 5),
    Column("against", "against"),
    Column("peak", "peak, GB", 2, 1e-9),
)
_ERROR_FRAMES = 3
"""Latent frames of the forwards that are compared with float32, which is slow."""
_STEPS = 20
_LATENT = (17, 16, 16)
"""Latent size of the tiny scale here: 1088 tokens; layers use int8 only from 1024 tokens on."""

_CASES = (
    ("float32", torch.float32, GGUFOps()),
    ("bfloat16", torch.bfloat16, GGUFOps()),
    ("int8", torch.bfloat16, GGUFOps(precision="int8")),
)


def measure(bench: Bench, table: Table) -> None:
    """Compare forwards at full size and whole runs at the tiny one."""
    scale = bench.scale._replace(latent=_LATENT) if bench.scale.name == "tiny" else bench.scale
    _forwards(dataclasses.replace(bench, scale=scale, dtype=torch.bfloat16), table)
    _errors(dataclasses.replace(bench, scale=_small(scale)), table)
    _runs(bench, table)
    close = [row for row in table.rows if row["against"] == "bfloat16" and not row["error"]]
    untouched = [row["what"] for row in close if "int8" in row["what"]]
    if untouched:
        raise ArithmeticError(f"no layer took int8: {', '.join(untouched)}")


def relative_error(value: Tensor, reference: Tensor) -> float:
    """Give the norm of the difference over that of the reference."""
    return float((value.float() - reference.float()).norm() / reference.float().norm())


def _forwards(bench: Bench, table: Table) -> None:
    done: dict[str, Timed] = {}
    for name, ops in (("bfloat16", GGUFOps()), ("int8", GGUFOps(precision="int8"))):
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


def _small(scale: Scale) -> Scale:
    return scale if scale.name == "tiny" else scale.cut(layers=None, latent_frames=_ERROR_FRAMES)


def _errors(bench: Bench, table: Table) -> None:
    """Compare forwards with one in float32, from which bfloat16 differs too."""
    found: dict[str, Tensor] = {}
    for name, dtype, ops in _CASES:
        log(f"8bit: error of a forward, {name}")
        here = dataclasses.replace(bench, dtype=dtype)
        model = random_model(
            bench.scale.config, base="Q4_K", adapter="Q8_0", device=bench.device, ops=ops
        )
        found[name] = model(**here.inputs(model, num_speakers=1)).float()
        for against in ("float32", "bfloat16")[: 2 if name == "int8" else 1]:
            table.add(
                what=f"forward of {bench.scale.num_tokens} tokens, {name}",
                blocks=bench.scale.config.num_layers,
                error=relative_error(found[name], found[against]),
                against=against,
            )
        del model
        release(bench.device)


def _runs(bench: Bench, table: Table) -> None:
    """Sample the same segment in float32, in bfloat16 and in int8."""
    scale = bench.scale if bench.scale.name == "tiny" else SCALES["tiny"]
    scale = scale._replace(latent=_LATENT)
    wholes: dict[str, Tensor] = {}
    for name, dtype, ops in _CASES:
        log(f"8bit: {_STEPS} steps, {name}")
        tiny = dataclasses.replace(bench, scale=scale, dtype=dtype)
        model = random_model(
            tiny.scale.config, base="Q4_K", adapter="Q8_0", device=bench.device, ops=ops
        )
        run = sample(tiny, model, passes=1, steps=_STEPS, num_speakers=1)
        wholes[name] = run.latents
        against = "bfloat16" if name == "int8" else "float32"
        table.add(
            what=f"latents of {_STEPS} steps, tiny, {name}",
            blocks=tiny.scale.config.num_layers,
            error=relative_error(run.latents, wholes[against]),
            against=against,
        )
