"""What several test processes share is made by one of them while the others wait."""

from __future__ import annotations

from pathlib import Path

from filelock import FileLock

CACHE = Path(__file__).resolve().parents[2] / ".cache"


def one_at_a_time(name: str) -> FileLock:
    """Give a lock between processes, to hold while something in the repository is made."""
    CACHE.mkdir(exist_ok=True)
    return FileLock(CACHE / f"{name}.lock")
