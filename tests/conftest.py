"""Registers the repository as the package `comfyui_multitalk` and offers the tiny set of weights.

The repository root is the package, whatever its folder is called: tests and tools import it as
`comfyui_multitalk`, the name an installed pack has, and never through the folder.
"""

from __future__ import annotations

import importlib.util
import os
import sys
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from comfyui_multitalk.tests.support.tiny import TinySet

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = "comfyui_multitalk"
_WITH_COMFYUI = ("tests/host/", "tests/browser/")
_WITH_THEIR_OWN = ("tests/host/test_hosting.py",)
_INSIDE_COMFYUI = "tests/host/inside/"


# Without a card Triton's kernels are interpreted; it must know before its first import.
if not Path("/dev/nvidiactl").exists():
    os.environ.setdefault("TRITON_INTERPRET", "1")

# oneDNN 3.12 gives wrong bfloat16 convolutions of few channels a group on processors with AMX (0.7
# off at 2 channels, right at the 48 of a released Wav2Vec2); it must know before its first use.
os.environ.setdefault("ONEDNN_MAX_CPU_ISA", "AVX512_CORE_BF16")


def _register_package() -> None:
    spec = importlib.util.find_spec(PACKAGE)
    if spec and spec.origin and Path(spec.origin).resolve() == ROOT / "__init__.py":
        return  # installed from this very folder
    spec = importlib.util.spec_from_file_location(
        PACKAGE, ROOT / "__init__.py", submodule_search_locations=[str(ROOT)]
    )
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[PACKAGE] = module
    spec.loader.exec_module(module)


_register_package()


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Say which tests stay together in one process when several run (`pytest -n 2`).

    Those that need ComfyUI share one server, unless they start one themselves; those that run
    inside ComfyUI's Python share that process; others share what their file has made.
    """
    from xdist.scheduler import LoadScopeScheduling

    class Together(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            file = nodeid.split("::")[0]
            if file.startswith(_INSIDE_COMFYUI):
                return "inside ComfyUI"
            shares = file.startswith(_WITH_COMFYUI) and file not in _WITH_THEIR_OWN
            return "comfyui" if shares else file

    return Together(config, log)


def pytest_unconfigure(config: pytest.Config) -> None:
    """Say in the last lines of a run how many tests did not run, and why."""
    terminal = config.pluginmanager.get_plugin("terminalreporter")
    skipped = terminal.stats.get("skipped", ()) if terminal else ()
    reasons = Counter(str(report.longrepr[2]).removeprefix("Skipped: ") for report in skipped)
    for reason, number in reasons.most_common()[::-1]:
        tests = "test" if number == 1 else "tests"
        terminal.write_line(f"{number} {tests} did not run: {reason}")


@pytest.fixture(scope="session")
def repository() -> Path:
    """Give the root of the repository."""
    return ROOT


@pytest.fixture(scope="session")
def tiny() -> TinySet:
    """Give the tiny set of weights: every file kind, real formats, untrained."""
    from comfyui_multitalk.tests.support.tiny import tiny_set

    return tiny_set()
