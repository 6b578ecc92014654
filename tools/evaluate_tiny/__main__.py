"""Measures a trained tiny set: the table of what it must show.

python -m comfyui_multitalk.tools.evaluate_tiny [--models models/tiny] [--clips 64] [--json FILE]
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from ..train_tiny.voices import load_voices
from .rows import ROWS, Material, Row
from .scenes import cut_voices, draw_scenes
from .system import System

_REPOSITORY = Path(__file__).resolve().parents[2]


def table(rows: Sequence[Row]) -> str:
    """Give rows as Markdown."""
    lines = ["| measured | figure | bound | | n |", "|---|---|---|---|---|"]
    for row in rows:
        mark = "" if not row.bound else "yes" if row.reached else "**no**"
        lines.append(f"| {row.name} | {row.value:.3f} | {row.bound} | {mark} | {row.count} |")
    return "\n".join(lines) + "\n"


def measure(system: System, material: Material, *, groups: Sequence[str]) -> list[Row]:
    """Measure groups of rows, each reported when it is done."""
    rows: list[Row] = []
    for group in groups:
        began = time.monotonic()
        found = ROWS[group](system, material)
        for row in found:
            sys.stderr.write(f"{row.name}: {row.value:.3f} ({row.bound})\n")
        sys.stderr.write(f"  {group}: {time.monotonic() - began:.0f} s\n")
        rows += found
    return rows


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; 1 if a bound is missed."""
    parser = argparse.ArgumentParser(prog="evaluate_tiny", description=__doc__)
    models = _REPOSITORY / "models" / "tiny"
    parser.add_argument("--models", type=Path, default=models, help="folder of the set")
    parser.add_argument("--voices", type=Path, help="voices file (that of the set)")
    parser.add_argument("--clips", type=int, default=64, help="photos of each kind")
    parser.add_argument("--rows", nargs="+", choices=ROWS, default=list(ROWS))
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--json", type=Path, help="file for the figures")
    parser.add_argument("--markdown", type=Path, help="file for the table")
    options = parser.parse_args(arguments)
    voices = load_voices(options.voices or options.models / "voices.npz")
    material = Material(
        models=options.models,
        device=options.device,
        singles=draw_scenes(options.clips, people=1),
        pairs=draw_scenes(options.clips, people=2),
        voices=cut_voices(voices, 2 * options.clips),
    )
    system = System(options.models, device=options.device)
    rows = measure(system, material, groups=options.rows)
    sys.stdout.write(table(rows))
    if options.json:
        figures = [row._asdict() for row in rows]
        options.json.write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")
    if options.markdown:
        options.markdown.write_text(table(rows), encoding="utf-8")
    return 0 if all(row.reached for row in rows) else 1


if __name__ == "__main__":
    sys.exit(main())
