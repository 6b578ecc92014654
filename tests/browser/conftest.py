"""The browser tests: a page of a real ComfyUI server in Chromium."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from comfyui_multitalk.tests.support.host import comfyui, server

if TYPE_CHECKING:
    from playwright.sync_api import Page

    from comfyui_multitalk.tests.support.comfyui import Server

__all__ = ["comfyui", "page", "server"]

HOW_TO_GET = "Get them: `pip install playwright`, and `apt-get install chromium` or CHROMIUM_PATH."
FLAGS = (
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)
READY = """() => !!(window.app?.graph
    && Object.keys(window.LiteGraph?.registered_node_types ?? {}).length > 100
    && document.querySelector('[data-testid=queue-button]'))"""


@pytest.fixture
def page(server: Server, tmp_path: Path) -> Iterator[Page]:
    """Give ComfyUI's page, ready, in a fresh profile; without a browser the tests skip."""
    chromium = os.environ.get("CHROMIUM_PATH") or shutil.which("chromium")
    if chromium is None:
        pytest.skip(f"There is no Chromium. {HOW_TO_GET}")
    sync_api = pytest.importorskip("playwright.sync_api", reason=HOW_TO_GET)
    with sync_api.sync_playwright() as playwright:
        context = playwright.chromium.launch_persistent_context(
            str(tmp_path / "profile"),
            executable_path=chromium,
            viewport={"width": 1700, "height": 950},
            args=list(FLAGS),
        )
        page = context.pages[0]
        page.set_default_timeout(240_000)
        page.goto(server.url, wait_until="domcontentloaded")
        page.wait_for_function(READY)
        yield page
        context.close()
