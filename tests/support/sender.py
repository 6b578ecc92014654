"""The pytest plugin that sends names or reports of tests to the run that shows them.

`inside.py` reads them: one JSON document a line, through the pipe whose number is in `INSIDE_PIPE`.
"""

from __future__ import annotations

import json
import os
from typing import Any

import pytest


class Sender:
    """Sends to the outer pytest run."""

    def __init__(self, config: pytest.Config) -> None:
        self._config = config
        self._pipe = os.fdopen(int(os.environ["INSIDE_PIPE"]), "w", buffering=1)

    def pytest_collection_finish(self, session: pytest.Session) -> None:
        """Send the names of all tests, where they are only listed."""
        if self._config.option.collectonly and not session.testsfailed:
            self._send({"tests": [item.nodeid for item in session.items]})

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Send the report on one phase of a test."""
        hook = self._config.hook
        self._send(hook.pytest_report_to_serializable(config=self._config, report=report))

    def pytest_unconfigure(self) -> None:
        """Close the pipe."""
        self._pipe.close()

    def _send(self, message: dict[str, Any]) -> None:
        self._pipe.write(json.dumps(message) + "\n")


def pytest_configure(config: pytest.Config) -> None:
    """Begin to send."""
    config.pluginmanager.register(Sender(config))
