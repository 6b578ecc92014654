"""The pack as users of the registry get it: what git has, less what `.comfyignore` names."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from comfyui_multitalk.tests.support.comfyui import ROOT


def packaged_files(root: Path = ROOT) -> list[str]:
    """List the files of a checkout's package; where it is no git checkout, the test skips."""
    every = _git(root, "ls-files")
    left_out = set(_git(root, "ls-files", "--cached", "--ignored", "--exclude-from=.comfyignore"))
    return sorted(name for name in every if name not in left_out and (root / name).is_file())


def copy_package(target: Path) -> None:
    """Make a folder as if the package had been unpacked there."""
    for name in packaged_files():
        place = target / name
        place.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, place)


def _git(root: Path, *arguments: str) -> list[str]:
    if not (root / ".git").exists():
        pytest.skip("The package is made from a git checkout, which this is not. Clone with git.")
    done = subprocess.run(
        ["git", "-C", str(root), *arguments, "-z"], capture_output=True, text=True, check=True
    )
    return [name for name in done.stdout.split("\0") if name]
