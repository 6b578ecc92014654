"""The browser tests share one page of a real ComfyUI server in Chromium."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest

from comfyui_multitalk.tests.browser.graph_page import HOW_TO_GET, GraphPage, open_page
from comfyui_multitalk.tests.support.host import comfyui, server

if TYPE_CHECKING:
    from comfyui_multitalk.tests.support.comfyui import Server

__all__ = ["comfyui", "page", "server"]


@pytest.fixture(scope="session")
def page(server: Server, tmp_path_factory: pytest.TempPathFactory) -> Iterator[GraphPage]:
    """Give ComfyUI's page, ready, in a fresh profile; without a browser the tests skip."""
    chromium = os.environ.get("CHROMIUM_PATH") or shutil.which("chromium")
    if chromium is None:
        pytest.skip(f"There is no Chromium. {HOW_TO_GET}")
    pytest.importorskip("playwright.sync_api", reason=HOW_TO_GET)
    profile = tmp_path_factory.mktemp("profile")
    with open_page(server.url, chromium=chromium, profile=profile) as page:
        yield GraphPage(page)
