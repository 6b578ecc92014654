"""What a whole video spends its time on: the demo on the trained tiny weights, profiled on CPU.

Any other operation than products, attention and convolutions that takes more than a tenth of the
time is flagged.
"""

from __future__ import annotations

import os
import shlex
import tempfile
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from torch.profiler import ProfilerActivity, profile

from ....standalone.cli import main as multitalk
from .bench import Bench
from .report import Column, Table

TITLE = "the demo on the tiny trained weights, share of the operations' own time"
COLUMNS = (
    Column("group", "kind"),
    Column("operation", "operation"),
    Column("share", "share of the time, %", 1, 100),
    Column("calls", "calls", 0),
    Column("flag", "over a tenth and no product"),
)
_ROOT = Path(__file__).resolve().parents[3]
_GROUPS = {
    "attention": ("scaled_dot_product", "flash_attention", "efficient_attention"),
    "convolution": ("conv",),
    "product": ("mm", "linear", "matmul", "einsum"),
}
"""Kinds, by parts of an operation's name; the first match counts."""
_LIMIT = 0.1
_SHOWN = 0.01


def measure(bench: Bench, table: Table) -> None:
    """Run the command under torch's profiler."""
    with tempfile.TemporaryDirectory(prefix="speed-") as folder:
        command = demo_command(Path(folder) / "demo.mp4")
        with profile(activities=[ProfilerActivity.CPU]) as watched:
            code = multitalk(command)
    if code:
        raise RuntimeError(f"the command ended with {code}")
    averages = watched.key_averages()
    times = {one.key: (one.self_cpu_time_total, one.count) for one in averages}
    for row in shares(times):
        table.add(**row)
    threads = os.environ.get("OMP_NUM_THREADS", "all")
    table.notes.append(f"On the CPU; OMP_NUM_THREADS is {threads}.")


def group(operation: str) -> str:
    """Tell the kind of an operation by its name."""
    for name, parts in _GROUPS.items():
        if any(part in operation for part in parts):
            return name
    return "other"


def shares(times: dict[str, tuple[float, int]]) -> Iterable[dict[str, Any]]:
    """Give a row for each kind, then one for each other operation above a hundredth of the time."""
    total = sum(time for time, _ in times.values())
    groups: dict[str, float] = defaultdict(float)
    calls: dict[str, int] = defaultdict(int)
    for operation, (time, count) in times.items():
        groups[group(operation)] += time
        calls[group(operation)] += count
    for name in sorted(groups, key=lambda one: -groups[one]):
        yield {"group": name, "share": groups[name] / total, "calls": calls[name]}
    others = {operation: one for operation, one in times.items() if group(operation) == "other"}
    for operation, (time, count) in sorted(others.items(), key=lambda one: -one[1][0]):
        if time / total > _SHOWN:
            flag = "yes" if time / total > _LIMIT else None
            yield {
                "group": "other",
                "operation": operation,
                "share": time / total,
                "calls": count,
                "flag": flag,
            }


def demo_command(out: Path) -> list[str]:
    """Give the arguments of the `multitalk` command in `scripts/demo`, for the CPU and `out`."""
    script = (_ROOT / "scripts" / "demo").read_text(encoding="utf-8")
    call = script.partition('"$bin/multitalk" ')[2].partition('\n"$bin')[0].replace("\\\n", " ")
    command, *options, _ = shlex.split(
        call.replace("$tiny", "models/tiny")
    )  # the last is its output
    paths = [str(_ROOT / word) if (_ROOT / word).is_file() else word for word in options]
    return [command, "--quiet", *paths, str(out), "--device", "cpu", "--dtype", "float32"]
