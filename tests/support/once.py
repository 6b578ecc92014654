"""A lock between test processes: one makes what all need, and the others wait."""

from __future__ import annotations

from pathlib import Path

from filelock import FileLock

CACHE = Path(__file__).resolve().parents[2] / ".cache"


def one_at_a_time(name: str) -> FileLock:
    """Give the lock to take while a file of the repository's cache is made."""
    CACHE.mkdir(exist_ok=True)
    return FileLock(CACHE / f"{name}.lock")
