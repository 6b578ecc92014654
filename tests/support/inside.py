"""Collects the tests of `tests/host/inside` and runs them by pytest inside ComfyUI's Python.

Each test there is an item of this run under its own name: a first call of ComfyUI's Python lists
the tests, a second one runs those that were selected and sends its reports, which are shown here
as they are. Without ComfyUI every test function is one skipped item.
"""

from __future__ import annotations

import ast
import json
import os
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO, Any

import pytest

from comfyui_multitalk.tests.support.comfyui import ROOT, Installation, UnavailableError
from comfyui_multitalk.tests.support.comfyui import installation as find_installation
from comfyui_multitalk.tests.support.tiny import tiny_set

FOLDER = ROOT / "tests" / "host" / "inside"
SENDER = "comfyui_multitalk.tests.support.sender"
COMFYUI = "comfyui_multitalk.tests.host.inside.plugin"


class InnerRun:
    """A pytest that runs in ComfyUI's Python.

    Attributes:
        messages: What `sender.py` sends while the tests run.
    """

    def __init__(self, comfyui: Installation, *arguments: str) -> None:
        self._folder = tempfile.TemporaryDirectory()
        folder = Path(self._folder.name)
        (folder / "comfyui_multitalk").symlink_to(ROOT, target_is_directory=True)
        self._log = folder / "log"
        read, write = os.pipe()
        own = {"PYTHONPATH": str(folder), "INSIDE_BASE": str(folder), "INSIDE_PIPE": str(write)}
        command = [str(comfyui.python), "-m", "pytest", "-p", SENDER, "-p", COMFYUI]
        root = FOLDER.parents[2]
        command += [f"--rootdir={root}", f"--config-file={root / 'pyproject.toml'}"]
        command += [f"--confcutdir={FOLDER}", "-p", "no:cacheprovider", f"@{folder / 'arguments'}"]
        (folder / "arguments").write_text("\n".join(arguments))
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                command,
                cwd=comfyui.root,
                env={**comfyui.environment, **own},
                stdout=log,
                stderr=subprocess.STDOUT,
                pass_fds=(write,),
            )
        os.close(write)
        self._pipe: IO[str] = os.fdopen(read)
        self.messages: Iterator[dict[str, Any]] = map(json.loads, self._pipe)

    def close(self) -> str:
        """End the process; give what it has printed."""
        self._process.kill()
        self._process.wait()
        self._pipe.close()
        log = self._log.read_text(errors="replace")
        self._folder.cleanup()
        return log


class Inside(pytest.Directory):
    """The folder of the tests that run inside ComfyUI's Python."""

    unavailable = ""
    _run: InnerRun | None = None
    _log = ""

    def collect(self) -> Iterator[pytest.Collector]:
        """List the files with their tests."""
        files = sorted(self.path.glob("test_*.py"))
        try:
            self._comfyui = find_installation()
        except UnavailableError as reason:
            self.unavailable = str(reason)
            tests = [f"{path.name}::{name}" for path in files for name in _functions(path)]
        else:
            tiny_set()
            run = InnerRun(self._comfyui, "--collect-only", "--quiet", str(FOLDER))
            listed = next(run.messages, None)
            log = run.close()
            if listed is None:
                raise self.CollectError(log)
            tests = [name.rpartition("/")[2] for name in listed["tests"]]
        for path in files:
            names = [test.partition("::")[2] for test in tests if test.startswith(f"{path.name}::")]
            yield InsideFile.from_parent(self, path=path, names=names)

    def reports(self, item: pytest.Item) -> list[dict[str, Any]]:
        """Give the serialised reports of a test, of which the first starts the run of all."""
        if self._run is None and not self._log:
            selected = [one for one in self.session.items if isinstance(one, InsideTest)]
            self._run = InnerRun(self._comfyui, *(f"{one.path}::{one.name}" for one in selected))
            self.config.add_cleanup(self.close)
        reports: list[dict[str, Any]] = []
        for message in self._run.messages if self._run else ():
            if message["nodeid"] == item.nodeid:
                reports.append(message)
                if message["when"] == "teardown":
                    return reports
        self.close()  # it ended before this test
        return []

    def close(self) -> str:
        """End the run; give what it has printed."""
        if self._run is not None:
            self._log, self._run = self._run.close(), None
        return self._log


class InsideFile(pytest.File):
    """A file of tests that run inside ComfyUI's Python."""

    def __init__(self, *, names: Sequence[str], **arguments: Any) -> None:
        super().__init__(**arguments)
        self._names = names

    def collect(self) -> Iterator[pytest.Item]:
        """Give the tests under the names they have inside."""
        for name in self._names:
            test = InsideTest.from_parent(self, name=name)
            test.add_marker("host")
            yield test


class InsideTest(pytest.Item):
    """A test that runs inside ComfyUI's Python."""

    def runtest(self) -> None:
        """Say why the test did not run inside."""
        folder = self.getparent(Inside)
        assert folder is not None
        if folder.unavailable:
            pytest.skip(folder.unavailable)
        log = folder.close()[-8000:]
        pytest.fail(f"ComfyUI's Python ended before this test:\n{log}", pytrace=False)


def pytest_collect_directory(path: Path, parent: pytest.Collector) -> Inside | None:
    """Take over the folder of the inner tests."""
    return Inside.from_parent(parent, path=path) if path == FOLDER else None


def pytest_runtest_protocol(item: pytest.Item) -> bool | None:
    """Show the reports of a test that ran inside as if it had run here."""
    folder = item.getparent(Inside)
    if not isinstance(item, InsideTest) or folder is None or folder.unavailable:
        return None
    reports = folder.reports(item)
    if not reports:
        return None
    hook = item.ihook
    hook.pytest_runtest_logstart(nodeid=item.nodeid, location=item.location)
    for data in reports:
        if isinstance(data["longrepr"], list):  # of a skipped test; JSON knows no tuples
            data["longrepr"] = tuple(data["longrepr"])
        report = hook.pytest_report_from_serializable(config=item.config, data=data)
        hook.pytest_runtest_logreport(report=report)
    hook.pytest_runtest_logfinish(nodeid=item.nodeid, location=item.location)
    return True


def _functions(path: Path) -> list[str]:
    functions = (
        one for one in ast.parse(path.read_text()).body if isinstance(one, ast.FunctionDef)
    )
    return [one.name for one in functions if one.name.startswith("test_")]
