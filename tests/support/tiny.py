"""The tiny set of weights, made once per state of the code that makes it."""

from __future__ import annotations

import hashlib
from pathlib import Path

from comfyui_multitalk.dev.make_tiny import TinySet, make_tiny
from comfyui_multitalk.tests.support.once import CACHE, one_at_a_time

ROOT = Path(__file__).resolve().parents[2]


def tiny_set() -> TinySet:
    """Give the tiny set: from the cache in the repository, or made now."""
    made = TinySet(CACHE / f"tiny-{_sources_digest()}")
    with one_at_a_time("tiny"):
        return made if all(file.is_file() for file in made.files) else make_tiny(made.folder)


def _sources_digest() -> str:
    tools = ROOT / "tools"
    sources = [*tools.glob("*.py"), *tools.glob("tiny/*.*")]
    digest = hashlib.sha256()
    for path in sorted(sources):
        digest.update(path.read_bytes())
    return digest.hexdigest()[:12]
