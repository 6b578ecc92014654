"""Writes the zoo, loads every file by the command's and the nodes' path, and writes the table.

    python -m comfyui_multitalk.dev.zoo FOLDER [--match WORDS] [--no-nodes] [--docs docs/files.md]

The files stay in FOLDER. The nodes need a ComfyUI (`tests/support/comfyui.py` says where it is
looked for). Ends with 1 if something else came of a variant than what must come.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

from comfyui_multitalk.tests.support.comfyui import ROOT, installation

from . import command
from .files import Variant
from .page import page
from .result import Result
from .run import check_all
from .variants import variants

Results = Mapping[str, Result]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; return its exit code."""
    parser = argparse.ArgumentParser(prog="zoo", description="Write and load every kind of file")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--match", default="", help="only variants whose title has these words")
    parser.add_argument("--no-nodes", action="store_true", help="leave ComfyUI out")
    parser.add_argument("--docs", type=Path, help="write the table there")
    options = parser.parse_args(arguments)
    logging.disable(logging.WARNING)  # of tensors that are left out, which rows are about
    rows = [row for row in variants() if options.match in row.title]
    options.folder.mkdir(parents=True, exist_ok=True)
    paths: dict[str, Results] = {
        "command": check_all(options.folder, command.check, rows=rows, keep=True)
    }
    if not options.no_nodes:
        paths["nodes"] = _inside_comfyui(options.match)
    if options.docs is not None:
        options.docs.write_text(page(rows, paths), encoding="utf-8")
    return _report(rows, paths)


def _inside_comfyui(match: str) -> Results:
    comfyui = installation()
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        (place / "comfyui_multitalk").symlink_to(ROOT, target_is_directory=True)
        results = place / "results.json"
        module = "comfyui_multitalk.dev.zoo.inside"
        subprocess.run(
            [str(comfyui.python), "-m", module, str(place), str(results), match],
            cwd=comfyui.root,
            env={**os.environ, **comfyui.environment, "PYTHONPATH": str(place)},
            check=True,
        )
        found: dict[str, list[str]] = json.loads(results.read_text(encoding="utf-8"))
    return {title: Result(*result) for title, result in found.items()}


def _report(rows: Sequence[Variant], paths: Mapping[str, Results]) -> int:
    wrong = [
        f"{row.title} ({path}): {found[row.title].problem}"
        for row in rows
        for path, found in paths.items()
        if found[row.title].problem
    ]
    print(*wrong, f"{len(rows)} variants, {len(wrong)} problems", sep="\n")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
