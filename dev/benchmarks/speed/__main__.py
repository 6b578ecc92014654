"""The command line: `python -m comfyui_multitalk.dev.benchmarks.speed [TABLE ...]`."""

from __future__ import annotations

import argparse
import importlib
import logging
import sys
import time
import traceback
from collections.abc import Sequence
from pathlib import Path

import torch

from .bench import Bench, log
from .measure import machine
from .report import Table, write
from .scales import SCALES

TABLES = {
    "floor": "floor",
    "forward": "forward",
    "dequantisation": "dequantisation",
    "step": "step",
    "lora": "lora",
    "memory": "memory",
    "8bit": "eight_bit",
    "vae": "vae",
    "e2e": "e2e",
}
"""Names of the tables on the command line, and the modules that measure them.

A module is imported only when its table is measured: some need packages that others do without.
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure tables one after another; return 1 if one failed."""
    options = _parse(arguments)
    logging.basicConfig(level=logging.WARNING, stream=sys.stderr)
    device = torch.device(options.device)
    scale = SCALES[options.scale].cut(layers=options.layers, latent_frames=options.latent_frames)
    bench = Bench(
        scale=scale,
        device=device,
        # a CPU is too slow in bfloat16
        dtype=torch.bfloat16 if device.type == "cuda" else torch.float32,
        seconds=options.seconds,
        repeats=options.repeats,
    )
    facts = machine(device) | {
        "computes in": str(bench.dtype).removeprefix("torch."),
        "attention of the models": bench.attention.name,
    }
    tables: list[Table] = []
    for name in options.tables or TABLES:
        log(name)
        table = _measure(bench, name)
        tables.append(table)
        sys.stdout.write(table.markdown() + "\n\n")
        sys.stdout.flush()
        if options.out:
            options.out.mkdir(parents=True, exist_ok=True)
            write(options.out / f"speed_{scale.name}_{device.type}", facts, str(scale), tables)
    return int(any(table.error for table in tables))


@torch.no_grad()
def _measure(bench: Bench, name: str) -> Table:
    """Measure one table; if it fails, the table keeps the traceback and the run goes on."""
    table = Table(name)
    bench.begin()
    began = time.perf_counter()
    try:
        module = importlib.import_module(f".{TABLES[name]}", __package__)
        table.title, table.columns = module.TITLE, module.COLUMNS
        module.measure(bench, table)
    except Exception:
        logging.getLogger(__name__).exception("the table %s failed", name)
        table.error = traceback.format_exc()
    table.seconds = time.perf_counter() - began
    return table


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="speed", description="Speed and memory of the model")
    parser.add_argument(
        "tables",
        nargs="*",
        metavar="TABLE",
        help=f"any of {', '.join(TABLES)}; all if none is given",
    )
    parser.add_argument("--scale", choices=SCALES, default="14b")
    parser.add_argument("--device", default="cuda", help="cuda or cpu")
    parser.add_argument("--out", type=Path, metavar="DIR", help="where to write JSON and Markdown")
    parser.add_argument("--seconds", type=float, default=90.0, help="time limit of one table")
    parser.add_argument("--repeats", type=int, default=3, help="timed calls of a forward")
    # For trying the command itself: the tables say how many blocks and tokens there were.
    parser.add_argument("--layers", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--latent-frames", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    unknown = set(options.tables) - set(TABLES)
    if unknown:
        parser.error(f"there is no table {', '.join(sorted(unknown))}")
    return options


if __name__ == "__main__":
    sys.exit(main())
