"""A run: seeds are written once, damaged one file at a time, and loaded.

Memory is the peak of the process above what it held before the case (Linux: /proc).
"""

from __future__ import annotations

import json
import logging
import random
import shutil
import signal
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ..zoo.plain import write_plain
from ..zoo.variants import variants
from . import loads
from .damage import damage

MAX_SECONDS = 1.0
MAX_BYTES = 100_000_000
_HUNG = 10.0
"""Seconds after which a case is ended."""


@dataclass(frozen=True, slots=True)
class Seed:
    """A valid model on disk.

    Attributes:
        path: What a person chooses.
        files: Contents of the files that are damaged.
        load: What is done with it.
    """

    path: Path
    files: dict[Path, bytes]
    load: Callable[[Path], None]


def seeds(kind: loads.Kind, folder: Path, *, most: int | None = None) -> list[Seed]:
    """Write the seeds of a kind; at most `most`, spread over all."""
    plain = write_plain(folder / "plain")
    rows = [row for row in variants() if _family_fits(kind, row.family)]
    rows = rows[:: max(1, len(rows) // most)] if most else rows
    lora = loads.lora(plain) if kind == "loras" else loads.header
    found = []
    for number, row in enumerate(rows):
        place = folder / f"seed-{number}"
        place.mkdir()
        path = row.write(place).path
        files = {file: file.read_bytes() for file in sorted(place.rglob("*")) if file.is_file()}
        if kind in ("gguf", "safetensors"):
            is_gguf = any(data[:4] == b"GGUF" for data in files.values())
            if is_gguf != (kind == "gguf"):
                shutil.rmtree(place)
                continue
        load = loads.encoder(row.family) if kind == "encoders" else lora
        found.append(Seed(path, files, load))
    return found


def _family_fits(kind: loads.Kind, family: str) -> bool:
    if kind == "encoders":
        return family in loads.ENCODERS
    return kind != "loras" or family == "lora"


def run_cases(
    all_seeds: list[Seed], *, seed: int, count: int, until: float, kept: Path
) -> dict[str, Any]:
    """Damage and load until `count` cases are done or the clock (`time.monotonic`) says `until`."""
    logging.disable(logging.CRITICAL)
    torch.set_num_threads(1)
    numbers = random.Random(seed)
    counts: Counter[str] = Counter()
    result: dict[str, Any] = {
        "cases": 0, "counts": counts, "slowest": 0.0, "largest": 0, "findings": {}
    }  # fmt: skip
    while result["cases"] < count and time.monotonic() < until:
        one = numbers.choice(all_seeds)
        file = numbers.choice(list(one.files))
        data = damage(one.files[file], numbers)
        file.write_bytes(data)
        outcomes, seconds, size = _one(one)
        file.write_bytes(one.files[file])
        result["cases"] += 1
        result["slowest"] = max(result["slowest"], seconds)
        result["largest"] = max(result["largest"], size)
        for outcome, detail in outcomes.items():
            counts[outcome] += 1
            key = f"{outcome}: {detail}"
            if outcome not in ("loads", "refused") and key not in result["findings"]:
                name = f"{outcome}-{seed}-{result['cases']}-{file.name}"
                (kept / name).write_bytes(data)
                result["findings"][key] = str(kept / name)
    return result


def run_chunk(
    kind: loads.Kind, folder: Path, seed: int, count: int, until: float, kept: Path, result: Path
) -> None:
    """Write the seeds into a folder, run cases, and write what came of them as JSON."""
    found = run_cases(seeds(kind, folder), seed=seed, count=count, until=until, kept=kept)
    result.write_text(json.dumps(found))


def _one(seed: Seed) -> tuple[dict[str, str], float, int]:
    """Load one; give the outcomes with a detail each, seconds, and bytes beyond the file's."""
    outcomes: dict[str, str] = {}
    before = _reset_peak()
    start = time.perf_counter()
    try:
        with _alarm(_HUNG):
            seed.load(seed.path)
        outcomes["loads"] = ""
    except loads.OURS as error:
        outcomes["refused"] = ""
        text = str(error)
        if not any(name in text for name in (seed.path.name, *(f.name for f in seed.files))):
            outcomes["unnamed"] = text[:60]
        if not _is_utf8(text) or len(text) > 8000:
            outcomes["foreign"] = f"unprintable or {len(text)} characters long"
    except Exception as error:  # noqa: BLE001  (what is looked for)
        where = traceback.extract_tb(error.__traceback__)[-1]
        last = f"{Path(where.filename).name}:{where.name}"
        ours = [f for f in traceback.extract_tb(error.__traceback__) if "site-packages" not in f[0]]
        mine = f"{Path(ours[-1].filename).name}:{ours[-1].lineno}" if ours else ""
        outcomes["foreign"] = f"{type(error).__name__} in {last} from {mine}"
    seconds = time.perf_counter() - start
    size = max(0, _status("VmHWM") - before - sum(map(len, seed.files.values())))
    if seconds > MAX_SECONDS:
        outcomes["slow"] = f"{seconds:.0f} s"
    if size > MAX_BYTES:
        outcomes["large"] = f"{size // 10**8}00 MB"
    return outcomes, seconds, size


def _is_utf8(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


@contextmanager
def _alarm(seconds: float) -> Iterator[None]:
    def ring(number: int, frame: object) -> None:
        raise TimeoutError

    old = signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, old)


def _reset_peak() -> int:
    """Forget the peak of this process's memory; give its bytes now."""
    Path("/proc/self/clear_refs").write_text("5")
    return _status("VmRSS")


def _status(name: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) << 10 for line in lines if line.startswith(name))
