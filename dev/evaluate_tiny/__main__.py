"""Measures a trained tiny set and compares each figure with its bound.

python -m comfyui_multitalk.dev.evaluate_tiny [--models models/tiny] [--clips 64] [--json FILE]

The files are rewritten after every group of rows, so an interrupted run leaves what it has
measured. `--rows two:32 long:16` measures two groups, on 32 and on 16 photos.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import torch

from ..train_tiny.voices import load_voices
from .rows import ROWS, Material, Row
from .scenes import cut_voices, draw_scenes
from .system import System

_REPOSITORY = Path(__file__).resolve().parents[2]
_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


class Group(NamedTuple):
    """A group of rows to measure.

    Attributes:
        name: Its key in `ROWS`.
        clips: Photos of each kind; `None` takes the common number.
    """

    name: str
    clips: int | None = None


def table(rows: Sequence[Row]) -> str:
    """Give rows as Markdown."""
    lines = ["| measured | figure | bound | | n |", "|---|---|---|---|---|"]
    for row in rows:
        mark = "" if not row.bound else "yes" if row.reached else "**no**"
        lines.append(f"| {row.name} | {row.value:.3f} | {row.bound} | {mark} | {row.count} |")
    return "\n".join(lines) + "\n"


def measure(
    system: System, groups: Sequence[Group], *, models: Path, voices: Path, clips: int
) -> Iterator[list[Row]]:
    """Measure groups of rows; after each group yield all rows so far."""
    recordings = load_voices(voices)
    rows: list[Row] = []
    for group in groups:
        began = time.monotonic()
        count = group.clips or clips
        material = Material(
            models=models,
            singles=draw_scenes(count, people=1),
            pairs=draw_scenes(count, people=2),
            voices=cut_voices(recordings, 2 * count),
        )
        found = ROWS[group.name](system, material)
        for row in found:
            sys.stderr.write(f"{row.name}: {row.value:.3f} ({row.bound}), n {row.count}\n")
        sys.stderr.write(f"  {group.name}: {time.monotonic() - began:.0f} s\n")
        rows += found
        yield rows


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; return 1 if a bound is missed."""
    parser = argparse.ArgumentParser(prog="evaluate_tiny", description=__doc__)
    models = _REPOSITORY / "models" / "tiny"
    parser.add_argument("--models", type=Path, default=models, help="folder of the set")
    parser.add_argument("--voices", type=Path, help="voices file (that of the set)")
    parser.add_argument("--clips", type=int, default=64, help="photos of each kind")
    parser.add_argument("--rows", nargs="+", type=_group, default=[Group(name) for name in ROWS],
                        metavar="GROUP[:CLIPS]", help=f"of {', '.join(ROWS)}")  # fmt: skip
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", choices=list(_DTYPES), default="float32", help="to compute in")
    parser.add_argument("--json", type=Path, help="file for the figures")
    parser.add_argument("--markdown", type=Path, help="file for the table")
    options = parser.parse_args(arguments)
    system = System(options.models, device=options.device, dtype=_DTYPES[options.dtype])
    rows: list[Row] = []
    for rows in measure(
        system, options.rows, models=options.models,
        voices=options.voices or options.models / "voices.npz", clips=options.clips,
    ):  # fmt: skip
        if options.json:
            figures = [row._asdict() for row in rows]
            options.json.write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")
        if options.markdown:
            options.markdown.write_text(table(rows), encoding="utf-8")
    sys.stdout.write(table(rows))
    return 0 if all(row.reached for row in rows) else 1


def _group(text: str) -> Group:
    name, _, clips = text.partition(":")
    if name not in ROWS:
        raise argparse.ArgumentTypeError(f"{name!r} is none of {', '.join(ROWS)}")
    return Group(name, int(clips) if clips else None)


if __name__ == "__main__":
    sys.exit(main())
