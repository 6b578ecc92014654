"""Where the time of a whole video goes: the demo on the tiny trained weights, profiled on the CPU.

Anything but products, attention and convolutions that takes more than a tenth of the time of all
operations is flagged.
"""

from __future__ import annotations

import os
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
"""Kinds to parts of the operations' names; the first that fits counts."""
_LIMIT = 0.1
_SHOWN = 0.01


def measure(bench: Bench, table: Table) -> None:
    """Run the command under torch's profiler."""
    files = _ROOT / "models" / "tiny"
    with tempfile.TemporaryDirectory(prefix="speed-") as folder:
        command = _command(files, Path(folder) / "demo.mp4")
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
    """Give a row for each kind, then one for each other operation above a hundredth."""
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


def _command(files: Path, out: Path) -> list[str]:
    """Give what `make demo` runs."""
    given = {
        "image": _ROOT / "workflows" / "inputs" / "tiny_portrait.png",
        "audio": _ROOT / "workflows" / "inputs" / "tiny_voice.wav",
        "prompt": "a person with brown hair in front of a white wall, talking",
        "base": files / "wan_tiny_i2v_Q8_0.gguf",
        "adapter": files / "multitalk_tiny.safetensors",
        "wav2vec": files / "wav2vec2_tiny.safetensors",
        "vae": files / "vae" / "wan_vae_tiny.safetensors",
        "text-encoder": files / "umt5_tiny.safetensors",
        "clip-vision": files / "clip_vision_tiny.safetensors",
        "steps": 8,
        "shift": 3,
        "text-guidance": 1,
        "audio-guidance": 1,
        "segment-frames": 33,
        "motion-frames": 5,
        "size": 128,
        "seed": 1,
        "device": "cpu",
        "dtype": "float32",
    }
    options = [word for name, value in given.items() for word in (f"--{name}", str(value))]
    return ["generate", "--quiet", *options, "-o", str(out)]
