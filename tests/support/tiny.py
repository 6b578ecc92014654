"""The tiny set of weights, made once per state of the code that makes it."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

from comfyui_multitalk.tools.make_tiny import TinySet, make_tiny

ROOT = Path(__file__).resolve().parents[2]


def tiny_set(scratch: Path) -> TinySet:
    """Give the tiny set, from the cache beside the code or made now.

    Args:
        scratch: Folder on the cache's disk or another; holds the set while it is being made
            when the cache cannot be written.
    """
    cache = ROOT / ".cache"
    try:
        cache.mkdir(exist_ok=True)
    except OSError:
        cache = scratch
    made = cache / f"tiny-{_sources_digest()}"
    if not made.is_dir():
        draft = cache / f"tiny-draft-{os.getpid()}"
        make_tiny(draft)
        try:
            draft.rename(made)  # two runs at once: the first one wins
        except OSError:
            if not made.is_dir():
                raise
    return TinySet(made)


def _sources_digest() -> str:
    tools = ROOT / "tools"
    sources = [*tools.glob("tiny/*"), tools / "make_tiny.py", tools / "convert.py"]
    sources += [tools / "quantize.py", ROOT / "scripts" / "tested.txt"]
    digest = hashlib.sha256()
    for path in sorted(path for path in sources if path.is_file()):
        digest.update(path.read_bytes())
    return digest.hexdigest()[:12]
