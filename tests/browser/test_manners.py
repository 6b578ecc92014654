"""Templates, help pages and translations as the page shows them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import pytest

from comfyui_multitalk.tests.host import graphs
from comfyui_multitalk.tests.support.schema import LOCALES, SCHEMA

if TYPE_CHECKING:
    from comfyui_multitalk.tests.browser.graph_page import GraphPage

pytestmark = pytest.mark.browser

NODES = json.loads(SCHEMA.read_text())
LOADED = """address => { const image = [...document.images].find(i => i.src.endsWith(address));
    return !!image && image.complete && image.naturalWidth > 0 }"""
THUMBNAIL = """name => { const image =
    document.querySelector(`[data-testid="template-workflow-${name}"] img`);
    return !!image && image.complete && image.naturalWidth == 640 }"""
SELECT = """type => app.canvas.selectItems([app.graph.nodes.find(n => n.type == type)])"""
NAMES = """types => Object.fromEntries(types.map(type => {
    const node = LiteGraph.createNode(type);
    const shown = Object.fromEntries(node.inputs.map(i => [i.name, i.localized_name]));
    return [type, {title: node.title, inputs: shown,
        outputs: node.outputs.map(o => o.localized_name)}] }))"""


def show_help(page: GraphPage, kind: str) -> str:
    """Open a node's help as a user does, by its info button; give all the page's text."""
    page.open("photo_to_talking_video")
    page.fit()
    page.page.evaluate(SELECT, kind)
    page.page.get_by_test_id("info-button").click()
    page.page.wait_for_function(LOADED, arg=f"/docs/images/{kind}.webp")
    return str(page.page.evaluate("document.body.innerText"))


@pytest.fixture
def chinese(page: GraphPage) -> Iterator[GraphPage]:
    """Give the page in Chinese; it is English again afterwards."""
    page.speak("zh")
    yield page
    page.speak("en")


def test_templates_show_their_thumbnails(page: GraphPage) -> None:
    page.clear()
    page.browse_templates()
    for title in graphs.TITLES.values():
        page.page.get_by_test_id(f"template-workflow-{title}").scroll_into_view_if_needed()
        page.page.wait_for_function(THUMBNAIL, arg=title)
    page.page.keyboard.press("Escape")
    assert page.failures == []


def test_help_page_shows_text_and_picture(page: GraphPage) -> None:
    shown = show_help(page, "MTK_Sampler")
    assert "speak with the given voices" in shown


def test_chinese_reaches_every_node_and_its_help(chinese: GraphPage) -> None:
    texts = json.loads((LOCALES / "zh" / "nodeDefs.json").read_text(encoding="utf-8"))
    shown: dict[str, Any] = chinese.page.evaluate(NAMES, list(NODES))
    for kind, node in shown.items():
        assert node["title"] == texts[kind]["display_name"]
        for name, label in node["inputs"].items():
            assert label == texts[kind]["inputs"][name.replace(".", "_")]["name"]
        for number, label in enumerate(node["outputs"]):
            output = NODES[kind]["outputs"][number]
            if output["name"] != output["type"]:  # else it bears the type's name
                assert label == texts[kind]["outputs"][str(number)]["name"]
    assert "生成照片里的人用给定语音说话的视频" in show_help(chinese, "MTK_Sampler")
