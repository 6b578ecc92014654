"""Takes the help pages' pictures: python -m comfyui_multitalk.dev.screenshots [SET]

Opens templates in a real ComfyUI and Chromium, runs the first so that previews show something, and
writes every node of the pack as it stands in its graph to `web/docs/images`. `SET` is as in
`dev/picture_workflows.py`.
"""

from __future__ import annotations

import io
import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from PIL import Image

from comfyui_multitalk.dev.picture_workflows import chosen_set, draw_photos, fill
from comfyui_multitalk.tests.browser.graph_page import GraphPage, open_page
from comfyui_multitalk.tests.host.graphs import ROOT, fill_folders
from comfyui_multitalk.tests.support.comfyui import Installation, Server, find_comfyui
from comfyui_multitalk.tests.support.schema import PREFIX

if TYPE_CHECKING:
    from playwright.sync_api import FloatRect

IMAGES = ROOT / "web" / "docs" / "images"
TEMPLATES = (
    "two_speakers",
    "one_segment_custom_sampler",
    "try_it_now",
    "photo_to_talking_video_quick",
)
"""Those that hold every node between them, but for those that replace a node of ComfyUI."""
MARGIN = 36  # pixels of the graph around a node
_CORNER = (460, 190)  # where a node's top left corner comes to lie on the page
_PLACE = """([type, x, y]) => {
    const node = app.graph.nodes.find(n => n.type == type), view = app.canvas.ds;
    const title = LiteGraph.NODE_TITLE_HEIGHT, [width, height] = node.size;
    view.scale = 1;
    view.offset = [x - node.pos[0], y + title - node.pos[1]];
    app.canvas.setDirty(true, true);
    const page = app.canvas.canvas.getBoundingClientRect();
    return {x: page.left + x, y: page.top + y, width, height: height + title} }"""
_REGISTERED = "Object.keys(LiteGraph.registered_node_types)"
_ADD = "type => { app.graph.clear(); app.graph.add(LiteGraph.createNode(type)) }"
_BARE = """() => { for (const name of ['Comfy.Minimap.Visible', 'Comfy.Graph.CanvasInfo'])
    app.ui.settings.setSettingValue(name, false) }"""


def main() -> None:
    """Start server and browser, and take every picture."""
    chromium = shutil.which("chromium")
    if chromium is None:
        raise SystemExit("There is no Chromium; get it with `apt-get install chromium`.")
    with tempfile.TemporaryDirectory() as folder:
        server = Server(Installation(find_comfyui(), cache=ROOT / ".cache"), Path(folder))
        fill_folders(server.base, tiny=chosen_set(), examples=ROOT / "workflows" / "inputs")
        draw_photos(server.base / "input")
        server.start()
        try:
            with open_page(server.url, chromium=chromium, profile=Path(folder) / "profile") as page:
                _take_all(GraphPage(page))
        finally:
            server.stop()


def _take_all(graph: GraphPage) -> None:
    IMAGES.mkdir(parents=True, exist_ok=True)
    taken: set[str] = set()
    graph.page.evaluate(_BARE)
    graph.open(TEMPLATES[0])
    fill(graph, people=2)
    ended = graph.run(seconds=1800)
    if ended != "success":
        raise SystemExit(f"{TEMPLATES[0]} did not run: {ended}")
    graph.picture("MTK_PreviewStrip")
    for template in TEMPLATES:
        graph.open(template)  # the values a user sees, with the pictures of the run
        kinds = _ours(graph, "app.graph.nodes.map(n => n.type)") - taken
        for kind in sorted(kinds):
            _take(graph, kind)
        taken |= kinds
    for kind in sorted(_ours(graph, _REGISTERED) - taken):
        graph.page.evaluate(_ADD, kind)
        _take(graph, kind)


def _ours(graph: GraphPage, expression: str) -> set[str]:
    return {kind for kind in graph.page.evaluate(expression) if kind.startswith(PREFIX)}


def _take(graph: GraphPage, kind: str) -> None:
    node: FloatRect = graph.page.evaluate(_PLACE, [kind, *_CORNER])
    graph.page.wait_for_timeout(1200)
    picture = graph.page.screenshot(
        clip={
            "x": node["x"] - MARGIN,
            "y": node["y"] - MARGIN,
            "width": node["width"] + 2 * MARGIN,
            "height": node["height"] + 2 * MARGIN,
        }
    )
    Image.open(io.BytesIO(picture)).convert("RGB").save(
        IMAGES / f"{kind}.webp", quality=82, method=6
    )


if __name__ == "__main__":
    main()
