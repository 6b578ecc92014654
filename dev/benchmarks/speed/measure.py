"""Times and memory of calls on a device, and what the machine is."""

from __future__ import annotations

import datetime
import importlib.metadata
import importlib.util
import itertools
import os
import platform
import shutil
import statistics
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch


@dataclass(frozen=True)
class Spread:
    """Seconds of several equal calls."""

    median: float
    least: float
    most: float
    repeats: int

    def __truediv__(self, count: float) -> Spread:
        return Spread(self.median / count, self.least / count, self.most / count, self.repeats)


def spread(seconds: list[float]) -> Spread:
    """Give the median, the least and the most of several calls."""
    return Spread(statistics.median(seconds), min(seconds), max(seconds), len(seconds))


def timed(
    call: Callable[[], Any],
    *,
    device: torch.device,
    seconds: float = 0.0,
    least: int = 3,
    most: int = 50,
) -> Spread:
    """Time a call that has been warmed up.

    Args:
        call: The call to time.
        device: Device that computes. On a card events take the times, so the calls follow each
            other without a gap.
        seconds: How long to repeat the call; at least `least` and at most `most` times.
        least: Fewest calls.
        most: Most calls.
    """
    repeats = least
    if most > least:
        began = now(device)
        call()
        repeats = min(most, max(least, int(seconds / (now(device) - began))))
    if device.type != "cuda":
        ends = [time.perf_counter()]
        for _ in range(repeats):
            call()
            ends.append(time.perf_counter())
        return spread([stop - start for start, stop in itertools.pairwise(ends)])
    events = [torch.cuda.Event(enable_timing=True) for _ in range(repeats + 1)]
    events[0].record()
    for event in events[1:]:
        call()
        event.record()
    torch.cuda.synchronize(device)
    pairs = itertools.pairwise(events)
    return spread([start.elapsed_time(stop) / 1e3 for start, stop in pairs])


def now(device: torch.device) -> float:
    """Wait for the device, then give the clock in seconds."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def start_peak(device: torch.device) -> int | None:
    """Start watching the highest allocated memory of a card; give the bytes allocated now."""
    if device.type != "cuda":
        return None
    torch.cuda.synchronize(device)
    torch.cuda.reset_peak_memory_stats(device)
    return torch.cuda.memory_allocated(device)


def peak(device: torch.device) -> int | None:
    """Give the highest allocated bytes of a card since `start_peak`."""
    if device.type != "cuda":
        return None
    torch.cuda.synchronize(device)
    return torch.cuda.max_memory_allocated(device)


def allocated(device: torch.device) -> int | None:
    """Give the allocated bytes of a card."""
    return torch.cuda.memory_allocated(device) if device.type == "cuda" else None


def machine(device: torch.device) -> dict[str, Any]:
    """Describe the machine, and when this was."""
    on_card = device.type == "cuda"
    triton = importlib.util.find_spec("triton") is not None
    return {
        "date": datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%d %H:%M UTC"),
        "device": torch.cuda.get_device_name(device) if on_card else f"{platform.machine()} CPU",
        "memory_bytes": torch.cuda.get_device_properties(device).total_memory if on_card else None,
        "driver": _nvidia_smi("driver_version") if on_card else None,
        "power_limit": _nvidia_smi("power.limit") if on_card else None,
        "cuda": torch.version.cuda if on_card else None,
        "cudnn": torch.backends.cudnn.version() if on_card else None,
        "torch": torch.__version__,
        "triton": importlib.metadata.version("triton") if triton else None,
        "python": platform.python_version(),
        "threads": torch.get_num_threads(),
        "cores": os.cpu_count(),
    }


def _nvidia_smi(field: str) -> str | None:
    if shutil.which("nvidia-smi") is None:
        return None
    command = ["nvidia-smi", f"--query-gpu={field}", "--format=csv,noheader"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return done.stdout.splitlines()[0].strip() if done.stdout else None
