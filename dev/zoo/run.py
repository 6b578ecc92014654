"""Writes variants one after another, and lets a path load each."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

from .files import Variant, Written
from .plain import PlainSet, write_plain
from .result import Result
from .variants import variants

Check = Callable[[Variant, Written, PlainSet], Result]


def check_all(
    folder: Path, check: Check, *, rows: Sequence[Variant] | None = None, keep: bool = False
) -> dict[str, Result]:
    """Check variants by one path.

    Args:
        folder: Where files are written.
        check: The path.
        rows: The variants; all by default.
        keep: Leave the files there.

    Returns:
        What came of each, by its title.
    """
    plain = write_plain(folder / "plain")
    return {
        row.title: check_one(folder, row, check, plain, keep=keep) for row in rows or variants()
    }


def check_one(folder: Path, row: Variant, check: Check, plain: PlainSet, *, keep: bool) -> Result:
    """Write one variant into a folder of its own and check it."""
    if keep:
        place = folder / row.slug
        shutil.rmtree(place, ignore_errors=True)  # of an earlier run
        place.mkdir()
    else:
        place = Path(tempfile.mkdtemp(dir=folder))
    written = row.write(place)
    try:
        return check(row, written, plain)
    except Exception as error:  # noqa: BLE001  (a crash is a result, and the others go on)
        return Result("crash", f"{type(error).__name__}: {error}")
    finally:
        if not keep:
            shutil.rmtree(place)
