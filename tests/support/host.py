"""Fixtures of the host and browser tests: one ComfyUI server on the tiny set.

Each suite's conftest takes them in.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import pytest

from comfyui_multitalk.tests.host.graphs import fill_folders
from comfyui_multitalk.tests.support.comfyui import (
    ROOT,
    Installation,
    Launch,
    Server,
    UnavailableError,
    find_comfyui,
)

if TYPE_CHECKING:
    from pathlib import Path

    from comfyui_multitalk.tests.support.tiny import TinySet

_PATHS = f"{Launch().model_paths}  custom_nodes: {ROOT}/tests/host/probes\n"


@pytest.fixture(scope="session")
def comfyui(repository: Path) -> Installation:
    """Give the ComfyUI to test with; without one the tests skip, saying how to get it."""
    try:
        root = find_comfyui()
    except UnavailableError as reason:
        pytest.skip(str(reason))
    try:
        return Installation(root, cache=repository / ".cache")
    except UnavailableError as reason:
        if os.environ.get("CI"):
            pytest.fail(str(reason))
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


@pytest.fixture(scope="session")
def measured(
    comfyui: Installation, tiny: TinySet, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Any]:
    """Give what the script inside ComfyUI measured: parity, LoRA, encoders."""
    return _inside("measure.py", comfyui, tiny, tmp_path_factory.mktemp("inside"))


@pytest.fixture(scope="session")
def sampled(
    comfyui: Installation, tiny: TinySet, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Any]:
    """Give what the script inside ComfyUI measured of sampling: samplers, guider, schedules."""
    return _inside("sampling.py", comfyui, tiny, tmp_path_factory.mktemp("sampling"))


@pytest.fixture(scope="session")
def citizen(
    comfyui: Installation, tiny: TinySet, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Any]:
    """Give what the script inside ComfyUI measured of the MODEL: nodes on it, LoRA, memory."""
    return _inside("citizen.py", comfyui, tiny, tmp_path_factory.mktemp("citizen"))


def _inside(script: str, comfyui: Installation, tiny: TinySet, scratch: Path) -> dict[str, Any]:
    result: dict[str, Any] = comfyui.run_script(
        ROOT / "tests" / "host" / "inside" / script, str(tiny.folder), str(scratch)
    )
    return result
