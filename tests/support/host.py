"""Fixtures of the host and browser tests: one ComfyUI server on the tiny set.

Each suite's conftest takes them in.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest

from comfyui_multitalk.tests.host.graphs import fill_folders
from comfyui_multitalk.tests.support.comfyui import (
    ROOT,
    Installation,
    Launch,
    Server,
    UnavailableError,
    installation,
)

if TYPE_CHECKING:
    from pathlib import Path

    from comfyui_multitalk.tests.support.tiny import TinySet

_PATHS = f"{Launch().model_paths}  custom_nodes: {ROOT}/tests/host/probes\n"


@pytest.fixture(scope="session")
def comfyui() -> Installation:
    """Give the ComfyUI to test with; without one the tests skip, saying how to get it."""
    try:
        return installation()
    except UnavailableError as reason:
        pytest.skip(str(reason))


@pytest.fixture(scope="session")
def server(
    comfyui: Installation, tiny: TinySet, repository: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Server]:
    """Give a running server with the tiny set in its model folders and the examples as input."""
    server = Server(comfyui, tmp_path_factory.mktemp("comfyui"), Launch(model_paths=_PATHS))
    fill_folders(server.base, tiny=tiny, examples=repository / "workflows" / "inputs")
    server.start()
    try:
        yield server
    finally:
        server.stop()
