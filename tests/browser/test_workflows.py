"""The shipped workflows in the real frontend: they open, say what the API form says, and run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from comfyui_multitalk.tests.host import graphs

if TYPE_CHECKING:
    from playwright.sync_api import Page

pytestmark = pytest.mark.browser

MISSING = """app.graph.nodes
    .filter(n => n.has_errors || !LiteGraph.registered_node_types[n.type]).map(n => n.type)"""
SET = """([type, values]) => { for (const n of app.graph.nodes) if (n.type == type)
    for (const w of n.widgets) if (w.name in values) w.value = values[w.name] }"""
RUN = """async () => { const seen = new Promise((ok, bad) => {
    app.api.addEventListener('execution_success', e => ok(''), {once: true});
    app.api.addEventListener('execution_error', e => ok(e.detail.exception_message), {once: true});
    });
    if (!await app.queuePrompt(0, 1)) return JSON.stringify(app.lastNodeErrors);
    return await seen }"""


def open_workflow(page: Page, name: str) -> dict[str, Any]:
    """Open a workflow as a user does; give its file."""
    workflow = json.loads((graphs.FOLDER / f"{name}.json").read_text())
    page.evaluate("([w, n]) => app.loadGraphData(w, true, true, n)", [workflow, name])
    page.wait_for_function(f"app.graph.nodes.length == {len(workflow['nodes'])}")
    return dict(workflow)


def screenshot(page: Page, path: Path) -> None:
    """Take a picture of the whole graph."""
    page.evaluate(
        "() => { const c = app.canvas; c.ds.scale = 0.6; c.ds.offset = [640, 140];"
        " c.setDirty(true, true) }"
    )
    page.wait_for_timeout(800)
    page.screenshot(path=path)


@pytest.mark.parametrize("name", graphs.WORKFLOWS)
def test_workflow_opens_without_missing_nodes_and_equals_its_api_form(
    page: Page, tmp_path: Path, name: str
) -> None:
    errors: list[str] = []
    page.on("pageerror", lambda error: errors.append(str(error)))
    open_workflow(page, name)
    assert page.evaluate(MISSING) == []
    sent = page.evaluate("async () => (await app.graphToPrompt()).output")
    api = json.loads((graphs.FOLDER / "api" / f"{name}.json").read_text())
    for key, node in api.items():
        assert sent[key]["class_type"] == node["class_type"]
        assert sent[key]["inputs"].items() >= node["inputs"].items()
    assert sent.keys() == api.keys()
    screenshot(page, tmp_path / f"{name}.png")
    assert errors == []


def test_run_button_makes_a_video_that_the_page_shows(page: Page, tmp_path: Path) -> None:
    open_workflow(page, "photo_to_talking_video")
    page.evaluate(SET, ["MTK_Sampler", graphs.SMALL])
    page.evaluate(SET, ["LoadAudio", {"audio": "short.wav"}])
    assert page.evaluate(RUN) == ""
    page.wait_for_function("() => [...document.querySelectorAll('video')].some(v => v.src)")
    page.wait_for_timeout(1000)
    screenshot(page, tmp_path / "finished.png")


def test_missing_file_shows_our_message_on_our_node(page: Page) -> None:
    open_workflow(page, "photo_to_talking_video")
    page.evaluate(SET, ["MTK_LoadWan", {"base": "gone.gguf"}])
    answer = page.evaluate(RUN)
    assert "city96/Wan2.1-I2V-14B-480P-gguf" in answer
    shown = page.evaluate("app.lastNodeErrors")
    assert [error["class_type"] for error in shown.values()] == ["MTK_LoadWan"]


def test_bad_setting_shows_our_message(page: Page) -> None:
    open_workflow(page, "photo_to_talking_video")
    page.evaluate(SET, ["MTK_Sampler", {**graphs.SMALL, "segment_frames": 30}])
    page.evaluate(SET, ["LoadAudio", {"audio": "short.wav"}])
    assert "`segment_frames` is 30" in page.evaluate(RUN)
