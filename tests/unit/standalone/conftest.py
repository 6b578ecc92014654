"""What the tests of the command share."""

from __future__ import annotations

from pathlib import Path

import pytest


@pytest.fixture
def package_path(tmp_path_factory: pytest.TempPathFactory, repository: Path) -> Path:
    """Give a folder from which a fresh interpreter imports `comfyui_multitalk`."""
    folder = tmp_path_factory.mktemp("package")
    (folder / "comfyui_multitalk").symlink_to(repository)
    return folder
