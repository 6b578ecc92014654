"""Damages the files of the zoo and loads each by the product's own paths.

    python -m comfyui_multitalk.dev.fuzz [--count N | --seconds S] [--seed S] [--kind KIND ...]

A case must load or raise the product's own error with the file's name, within 1 s and 100 MB beyond
the file. The files of other cases are kept in --keep. Linux only (memory is read from /proc). Ends
with 1 if there is such a case.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import get_args

from .loads import Kind
from .report import Report
from .run import run_chunk

_CHUNK = 20_000
_DAY = 86_400.0


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; return its exit code."""
    parser = argparse.ArgumentParser(prog="fuzz", description="Load damaged weights files")
    parser.add_argument("--count", type=int, default=10**9, help="cases of each kind")
    parser.add_argument("--seconds", type=float, default=_DAY, help="time for each kind")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--kind", nargs="+", choices=get_args(Kind), default=get_args(Kind))
    parser.add_argument("--keep", type=Path, default=Path("fuzz-findings"))
    parser.add_argument("--json", type=Path, help="write the reports there")
    options = parser.parse_args(arguments)
    options.keep.mkdir(parents=True, exist_ok=True)
    reports = []
    for kind in options.kind:
        report = Report(kind, options.seed)
        reports.append(report)
        _fill(report, kind, count=options.count, seconds=options.seconds, kept=options.keep)
        print(report.lines(), flush=True)
    if options.json is not None:
        options.json.write_text(json.dumps([asdict(r) for r in reports], indent=1))
    return 0 if all(report.is_clean for report in reports) else 1


def _fill(report: Report, kind: Kind, *, count: int, seconds: float, kept: Path) -> None:
    """Run chunks, each in a process of its own, so that a crash ends only its chunk."""
    start = time.monotonic()
    shared = Path("/dev/shm")
    number = 0
    while report.cases < count and time.monotonic() < start + seconds:
        with tempfile.TemporaryDirectory(dir=shared if shared.is_dir() else None) as folder:
            size = min(_CHUNK, count - report.cases)
            result = Path(folder, "result.json")
            until = start + seconds
            process = multiprocessing.get_context("spawn").Process(
                target=run_chunk,
                args=(kind, Path(folder), report.seed + number, size, until, kept, result),
            )
            process.start()
            process.join()
            if result.exists():
                report.add(json.loads(result.read_text()))
            else:
                report.cases += size
                report.counts["crash"] += 1
                report.findings[f"crash: exit code {process.exitcode}"] = (
                    f"seed {report.seed + number}"
                )
        number += 1
    report.seconds = time.monotonic() - start


if __name__ == "__main__":
    sys.exit(main())
