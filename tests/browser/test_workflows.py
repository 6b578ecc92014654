"""The shipped workflows in the real frontend: they open, run, and say what is wrong where it is."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest

from comfyui_multitalk.tests.host import graphs, sounds

if TYPE_CHECKING:
    from comfyui_multitalk.tests.browser.graph_page import GraphPage
    from comfyui_multitalk.tests.support.comfyui import Server

pytestmark = pytest.mark.browser

SECONDS = {
    "try_it_now": 51 / 25,
    "two_speakers": 2 * 0.6,
    "one_segment_custom_sampler": 33 / 25,
}
"""What the videos last that do not last 0.6 s, as `short.wav`."""
WIRE = """small => { const box = app.graph.nodes[0];
    const add = (type, values) => { const node = LiteGraph.createNode(type); app.graph.add(node);
        node.pos = [box.pos[0] + (type == 'SaveVideo' ? 500 : -500), box.pos[1]];
        for (const w of node.widgets) if (w.name in values) w.value = values[w.name];
        return node };
    add('LoadImage', {image: 'portrait.png'}).connect(0, box, 'image');
    add('LoadAudio', {audio: 'short.wav'}).connect(0, box, 'audio');
    box.connect('video', add('SaveVideo', {}), 'video');
    for (const node of [box, ...box.subgraph.nodes]) for (const w of node.widgets ?? [])
        if (w.name in small) w.value = small[w.name] }"""
"""Gives the subgraph a photo, a voice and a place to save, and small settings."""


@pytest.mark.parametrize("name", graphs.TITLES)
def test_workflow_opens_without_missing_nodes_and_equals_its_api_form(
    page: GraphPage, name: str
) -> None:
    page.open(name)
    assert page.missing() == []
    sent = page.sent()
    api = json.loads((graphs.FOLDER / "api" / f"{name}.json").read_text())
    for key, node in api.items():
        assert sent[key]["class_type"] == node["class_type"]
        known = known_to_the_page(node["inputs"], sent[key]["inputs"])
        assert sent[key]["inputs"].items() >= known.items()
    assert sent.keys() == api.keys()
    assert page.failures == []


def known_to_the_page(inputs: dict[str, Any], sent: dict[str, Any]) -> dict[str, Any]:
    """Leave out SaveVideo's inputs of other ComfyUIs: older ones have `codec` alone."""
    other = "codec" if "format.codec" in sent else "format.codec"
    return {name: value for name, value in inputs.items() if not name.startswith(other)}


@pytest.mark.parametrize("name", graphs.TITLES)
def test_template_opens_from_the_browser_and_shows_its_video(page: GraphPage, name: str) -> None:
    page.open_template(name)
    assert page.missing() == []
    page.make_small()
    assert page.run() == "success"
    width, height, seconds = page.video()
    assert max(width, height) == 64
    assert seconds == pytest.approx(SECONDS.get(name, 0.6), abs=0.05)
    assert "type=temp" in page.picture("MTK_PreviewStrip")
    if name == "two_speakers":
        assert "type=temp" in page.picture("MTK_PreviewSpeakers")
    assert page.marked() == []
    assert page.failures == []


def test_subgraph_from_the_library_runs(page: GraphPage) -> None:
    page.clear()
    page.add_from_library("Photo to talking video")
    page.page.evaluate(WIRE, graphs.SMALL)
    page.fit()
    assert page.missing() == []
    assert page.run() == "success"
    width, height, seconds = page.video()
    assert (width, height) == (64, 64)
    assert seconds == pytest.approx(0.6, abs=0.05)
    assert page.failures == []


def test_missing_file_is_shown_on_our_node(page: GraphPage) -> None:
    page.open("photo_to_talking_video")
    page.put("MTK_LoadWan", base="gone.gguf")
    assert page.run() == "rejected"
    assert page.marked() == ["MTK_LoadWan"]
    assert "city96/Wan2.1-I2V-14B-480P-gguf" in page.details()


def test_value_out_of_range_is_shown_on_our_node(page: GraphPage) -> None:
    page.open("photo_to_talking_video")
    page.put("MTK_Sampler", steps=5000)
    assert page.run() == "rejected"
    assert page.marked() == ["MTK_Sampler"]
    assert "steps" in page.details()


def test_wrong_wiring_is_shown_on_our_node(page: GraphPage) -> None:
    page.open("photo_to_talking_video")
    page.make_small()
    page.page.evaluate(
        """() => { const find = type => app.graph.nodes.find(n => n.type == type);
        find('MTK_LoadWan').connect(0, find('MTK_Sampler'), 'model') }"""
    )
    message = page.run()
    assert "no audio layers" in message
    assert page.marked() == ["MTK_Sampler"]
    assert message in page.details()


def test_short_sound_is_shown_on_our_node(server: Server, page: GraphPage) -> None:
    voice, rate = sounds.read(server.base / "input" / "short.wav")
    part = (voice[:, : rate // 4] * 32767).astype("int16")
    sounds.write(server.base / "input" / "blip.wav", list(part), rate=rate)
    page.open("photo_to_talking_video")
    page.make_small(sound="blip.wav")
    message = page.run()
    assert message.startswith("The voice lasts 0.25 s")
    assert page.marked() == ["MTK_Speaker"]
    assert message in page.details()
