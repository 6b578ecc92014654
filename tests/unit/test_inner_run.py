"""How the outer test run shows tests that run inside ComfyUI's Python, and those that do not run.

A second pytest is started on a few tests, with our own Python in the place of ComfyUI's.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from comfyui_multitalk.tests.support.comfyui import ROOT

CONFTEST = """
import os
import sys
from pathlib import Path
from types import SimpleNamespace

from comfyui_multitalk.tests.support import inside
from comfyui_multitalk.tests.support.inside import *

here = Path(__file__).parent
inside.FOLDER = here / "tests" / "host" / "inside"
inside.COMFYUI = "no:cacheprovider"
inside.tiny_set = lambda: None
inside.find_installation = lambda: SimpleNamespace(
    python=sys.executable, root=here, environment=dict(os.environ)
)
"""
TESTS = """
import os
import pytest

def test_good():
    pass

@pytest.mark.parametrize("number", [1, 2])
def test_of_numbers(number):
    print("the number is", number)
    assert number == 1

def test_skipped():
    pytest.skip("no reason")

def test_fatal():
    os._exit(3)

def test_after_it():
    pass
"""


def run(*arguments: str, folder: Path, **variables: str) -> list[str]:
    """Run pytest; give the lines it prints."""
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "--color=no", *arguments],
        cwd=folder,
        env={**os.environ, **variables},
        capture_output=True,
        text=True,
        check=False,
    )
    return (done.stdout + done.stderr).rstrip().splitlines()


@pytest.fixture
def shown(tmp_path: Path) -> str:
    """Give what a run shows of the tests above."""
    packages, folder = tmp_path / "packages", tmp_path / "tests" / "host" / "inside"
    packages.mkdir()
    (packages / "comfyui_multitalk").symlink_to(ROOT, target_is_directory=True)
    folder.mkdir(parents=True)
    (folder / "test_few.py").write_text(TESTS)
    (tmp_path / "conftest.py").write_text(CONFTEST)
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    return "\n".join(run("-rA", "tests", folder=tmp_path, PYTHONPATH=str(packages)))


def test_inner_test_is_an_item_with_its_own_outcome_and_text(shown: str) -> None:
    few = "tests/host/inside/test_few.py::"
    assert f"PASSED {few}test_good" in shown
    assert f"PASSED {few}test_of_numbers[1]" in shown
    assert f"FAILED {few}test_of_numbers[2]" in shown
    assert "assert 2 == 1" in shown
    assert "the number is 2" in shown
    assert "no reason" in shown
    for name in ("test_fatal", "test_after_it"):
        assert f"FAILED {few}{name}" in shown
    assert "ComfyUI's Python ended before this test" in shown
    assert "3 failed, 2 passed, 1 skipped" in shown


def test_run_without_comfyui_ends_with_the_number_of_tests_left_out_and_why(tmp_path: Path) -> None:
    arguments = ("-q", "tests/host/test_guider.py", "tests/host/inside/test_encoders.py")
    nowhere = {"HOME": str(tmp_path), "COMFYUI_PATH": str(tmp_path / "nowhere"), "CI": "true"}
    *_, counts, last = run(*arguments, folder=ROOT, **nowhere)
    number = counts.split()[0]
    assert counts.startswith(f"{number} skipped in")
    assert int(number) > 7
    assert last.startswith(f"{number} tests did not run: There is no ComfyUI at {tmp_path}/nowhere")
    assert "set COMFYUI_PATH" in last
