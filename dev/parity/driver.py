"""Compare golden files with this code: one line for each group of recorded tensors.

    python -m comfyui_multitalk.dev.parity.driver FILE...

Exits with 0 if everything is within tolerance; with 1 if something is not, or if a file holds
nothing to compare; with 2 if a file cannot be read or is of an unknown kind.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from safetensors import SafetensorError

from ...multitalk_core.errors import MultiTalkError
from . import audio_proj, dit, lrope, preprocess, sampler, vae, wav2vec
from .golden import GoldenFile, Row

Comparer = Callable[[Path], list[Row]]

_KINDS: dict[str, Comparer] = {
    "sampler": sampler.compare,
    "infinitetalk": sampler.compare,
    "dit": dit.compare,
    "audio_proj": audio_proj.compare,
    "lrope": lrope.compare,
    "preprocess": preprocess.compare,
    "vae": vae.compare,
    "wav2vec": wav2vec.compare,
}
"""By a word in what the file says it is (`what` in its config)."""

_OK, _FAILED, _UNREADABLE = 0, 1, 2


def main(arguments: Sequence[str]) -> int:
    """Compare each file; return the worst outcome as exit status."""
    if not arguments:
        print("usage: scripts/parity FILE...", file=sys.stderr)
        return _UNREADABLE
    return max(compare_file(Path(argument)) for argument in arguments)


def compare_file(path: Path) -> int:
    """Print the rows of one file and give its outcome."""
    try:
        rows = _comparer(GoldenFile(path))(path)
    except (OSError, ValueError, KeyError, RuntimeError, SafetensorError, MultiTalkError) as error:
        message = str(error.args[0] if isinstance(error, KeyError) else error).strip()
        print(f"{path.name}: {message.splitlines()[0]}", file=sys.stderr)
        return _UNREADABLE
    for row in rows:
        print(f"{path.stem}  {describe(row)}")
    if not any(math.isfinite(row.tolerance) for row in rows):
        print(f"{path.name}: nothing in this file could be compared.", file=sys.stderr)
        return _FAILED
    return _OK if all(row.ok for row in rows) else _FAILED


def describe(row: Row) -> str:
    """Write a row as one line: group, largest error, tolerance, verdict, note."""
    note = f"  {row.note}" if row.note else ""
    if math.isinf(row.tolerance):
        error = f"error {row.error:.1e}" if math.isfinite(row.error) else ""
        return f"{row.group:<40} {error:<16}{note}"
    verdict = "ok" if row.ok else "FAILED"
    return (
        f"{row.group:<40} error {row.error:<9.1e} tolerance {row.tolerance:<8.1e} {verdict}{note}"
    )


def _comparer(file: GoldenFile) -> Comparer:
    for kind, compare in _KINDS.items():
        if kind in file.what:
            return compare
    raise ValueError(
        f"this golden file says it is {file.what!r}, which is unknown. Known: {', '.join(_KINDS)}."
    )


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
