"""ComfyUI's page as a user sees it: open a workflow, set values, press Run, look at the nodes."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from comfyui_multitalk.tests.host import graphs

if TYPE_CHECKING:
    from playwright.sync_api import Page

HOW_TO_GET = "Get them: `pip install playwright`, and `apt-get install chromium` or CHROMIUM_PATH."
_CATEGORY = "MultiTalk (Wan2.1 GGUF)"
_FLAGS = (
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)
_READY = """() => !!(window.app?.graph
    && Object.keys(window.LiteGraph?.registered_node_types ?? {}).length > 100
    && document.querySelector('[data-testid=queue-button]'))"""
_MISSING = """app.graph.nodes
    .filter(n => n.has_errors || !LiteGraph.registered_node_types[n.type]).map(n => n.type)"""
_SET = """([type, values]) => { for (const n of app.graph.nodes) if (n.type == type)
    for (const w of n.widgets) if (w.name in values) {
        w.value = values[w.name]; w.callback?.(w.value) } }"""
_SPEAK = "language => app.ui.settings.setSettingValueAsync('Comfy.Locale', language)"
_LISTEN = """() => { window.ended = null;
    const end = text => { window.ended ??= text };
    app.api.addEventListener('execution_success', () => end('success'), {once: true});
    app.api.addEventListener('execution_error', e => end(e.detail.exception_message), {once: true});
    window.rejected = setInterval(() => { if (app.lastNodeErrors
        && Object.keys(app.lastNodeErrors).length) end('rejected') }, 100) }"""
_PICTURE = """type => { const n = app.graph.nodes.find(n => n.type == type);
    const image = n?.imgs?.[0];
    return image?.complete && image.naturalWidth ? image.src : null }"""
_VIDEO = """() => { const v = [...document.querySelectorAll('video')].find(v => v.src);
    return v && v.readyState > 0 ? [v.src, v.videoWidth, v.videoHeight, v.duration] : null }"""
_RED = """app.graph.nodes.filter(n => n.has_errors
    || n.id == app.lastExecutionError?.node_id).map(n => n.type)"""
_DETAILS = re.compile("View details|See Errors")  # the newest pages, and that of ComfyUI 0.23
_BARE = """() => { for (const name of ['Comfy.Minimap.Visible', 'Comfy.Graph.CanvasInfo'])
    app.ui.settings.setSettingValue(name, false) }"""


@contextmanager
def open_page(url: str, *, chromium: str, profile: Path) -> Iterator[Page]:
    """Give ComfyUI's page, ready, in a profile of its own."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        context = playwright.chromium.launch_persistent_context(
            str(profile),
            executable_path=chromium,
            viewport={"width": 1700, "height": 950},
            args=list(_FLAGS),
        )
        page = context.pages[0]
        page.set_default_timeout(60_000)
        page.goto(url, wait_until="domcontentloaded")
        page.wait_for_function(_READY)
        yield page
        context.close()


class GraphPage:
    """A page of ComfyUI.

    Attributes:
        page: Playwright's.
        failures: What scripts of the page threw.
    """

    def __init__(self, page: Page) -> None:
        self.page = page
        self.failures: list[str] = []
        page.on("pageerror", lambda error: self.failures.append(str(error)))

    def open(self, name: str) -> None:
        """Open one of the pack's workflows, named as its API form."""
        workflow = json.loads(graphs.file(name).read_text(encoding="utf-8"))
        opened = f"app.graph.nodes.length == {len(workflow['nodes'])}"
        for _ in range(3):  # after a reload the page restores its last workflow, perhaps over ours
            self.page.evaluate("([w, n]) => app.loadGraphData(w, true, true, n)", [workflow, name])
            for _ in range(20):
                if self.page.evaluate(opened):
                    return
                self.page.wait_for_timeout(500)
        raise AssertionError(f"{name} does not open")

    def browse_templates(self) -> None:
        """Show the pack's category in the template browser."""
        self.page.evaluate("app.extensionManager.command.execute('Comfy.BrowseTemplates')")
        self.page.get_by_text(_CATEGORY, exact=True).first.click()

    def open_template(self, name: str) -> None:
        """Open one of the pack's workflows as a user does: click it in the template browser."""
        self.clear()
        self.browse_templates()
        self.page.get_by_test_id(f"template-workflow-{graphs.TITLES[name]}").click()
        num_nodes = len(json.loads(graphs.file(name).read_text(encoding="utf-8"))["nodes"])
        self.page.wait_for_function(f"app.graph.nodes.length == {num_nodes}")

    def clear(self) -> None:
        """Begin an empty workflow."""
        self.page.evaluate("app.extensionManager.command.execute('Comfy.NewBlankWorkflow')")
        self.page.wait_for_function("app.graph.nodes.length == 0")

    def speak(self, language: str) -> None:
        """Show the page in a language, as the settings' language list does."""
        self.page.evaluate(_SPEAK, language)
        self.page.reload(wait_until="domcontentloaded")
        self.page.wait_for_function(_READY)

    def add_from_library(self, name: str) -> None:
        """Add what the Nodes sidebar offers under a name: click it, then a place."""
        self.page.keyboard.press("n")
        self.page.get_by_placeholder("Search...").fill(name)
        # Tabs, breadcrumbs and popovers show the names of open workflows, which may be the same.
        elsewhere = " or ".join(
            f"contains(@class, '{part}')" for part in ("workflow-tabs", "breadcrumb", "popover")
        )
        self.page.locator(
            f"xpath=//*[not(*) and normalize-space()='{name}' and not(ancestor::*[{elsewhere}])]"
        ).first.click()
        self.page.mouse.click(900, 400)
        self.page.wait_for_function("app.graph.nodes.length == 1")
        self.page.keyboard.press("n")

    def missing(self) -> list[str]:
        """Give the types of nodes that this ComfyUI does not know."""
        return list(self.page.evaluate(_MISSING))

    def sent(self) -> graphs.Graph:
        """Give what Run would send."""
        return dict(self.page.evaluate("async () => (await app.graphToPrompt()).output"))

    def put(self, kind: str, **values: Any) -> None:
        """Set widgets of every node of a type."""
        self.page.evaluate(_SET, [kind, values])

    def make_small(self, *, sound: str = "short.wav") -> None:
        """Make the run short: small settings everywhere, and a short sound for every speaker."""
        for kind, values in {**graphs.SMALL_SEGMENT, "MTK_Sampler": graphs.SMALL}.items():
            self.put(kind, **values)
        self.put("LoadAudio", audio=sound)

    def run(self, *, seconds: float = 240) -> str:
        """Press Run; give `success`, `rejected` or the message of the node that failed.

        Args:
            seconds: How long that may take.
        """
        self.page.evaluate(_LISTEN)
        self.page.click("[data-testid=queue-button]")
        self.page.wait_for_function("window.ended !== null", timeout=seconds * 1000)
        self.page.evaluate("clearInterval(window.rejected)")
        return str(self.page.evaluate("window.ended")).strip()

    def picture(self, kind: str) -> str:
        """Wait for the picture on a node of a type; give its address."""
        return str(self.page.wait_for_function(_PICTURE, arg=kind).json_value())

    def video(self) -> tuple[int, int, float]:
        """Wait for a video that can be played; give width, height and seconds."""
        _, width, height, seconds = self.page.wait_for_function(_VIDEO).json_value()
        return int(width), int(height), float(seconds)

    def marked(self) -> list[str]:
        """Give the types of the nodes that are marked red."""
        return list(self.page.evaluate(_RED))

    def details(self) -> str:
        """Open the details of the error that the page announces; give all the page's text."""
        self.page.get_by_role("button", name=_DETAILS).last.click()
        self.page.wait_for_timeout(700)
        return str(self.page.evaluate("document.body.innerText"))

    def fit(self) -> None:
        """Bring the whole graph into view; videos outside it are not shown."""
        self.page.evaluate("app.extensionManager.command.execute('Comfy.Canvas.FitView')")

    def screenshot(self, path: Path) -> None:
        """Take a picture of the whole graph, without what floats above it."""
        self.page.evaluate(_BARE)
        self.fit()
        self.page.wait_for_timeout(1500)
        self.page.screenshot(path=path)
