"""Takes the pictures of `docs/images`: python -m comfyui_multitalk.dev.picture_workflows [SET]

Opens workflows in a real ComfyUI and Chromium, presses Run, and writes the graphs with their
finished videos, and the previews. `SET` is a folder of weights as `models/tiny`; without it the
tests' untrained ones are taken, whose videos are noise.
"""

from __future__ import annotations

import io
import shutil
import sys
import tempfile
import urllib.request
from pathlib import Path
from typing import TYPE_CHECKING, Any

from PIL import Image

from comfyui_multitalk.dev.evaluate_tiny.scenes import draw_scenes
from comfyui_multitalk.dev.tiny.files import TinySet, TrainedSet
from comfyui_multitalk.tests.browser.graph_page import GraphPage, open_page
from comfyui_multitalk.tests.host import sounds
from comfyui_multitalk.tests.host.graphs import ROOT, fill_folders
from comfyui_multitalk.tests.support.comfyui import Installation, Server, find_comfyui
from comfyui_multitalk.tests.support.tiny import tiny_set

if TYPE_CHECKING:
    from playwright.sync_api import FloatRect

IMAGES = ROOT / "docs" / "images"
SETTINGS = {
    "size": "longest side",
    "seed": 1,
    "steps": 8,
    "segment_frames": 33,
    "motion_frames": 5,
    "shift": 3.0,
    "text_guidance": 1.0,
    "audio_guidance": 1.0,
}
"""What the trained set was trained for."""
TEMPLATES = {"photo_to_talking_video": 1, "two_speakers": 2}
"""People in each one's photo."""
VOICES = {"voice.wav": 1.32, "left.wav": 0.64, "right.wav": 0.68}
"""Seconds that each example speaks: together one segment."""
_ORIGIN = (80, 115)
"""Where the graph begins on the page, below what floats above it, in pixels."""
_WIDTH = 1600
_TOASTS_SECONDS = 6
_SHOW = """([left, top, width]) => {
    for (const name of ['Comfy.Minimap.Visible', 'Comfy.Graph.CanvasInfo'])
        app.ui.settings.setSettingValue(name, false);
    app.ui.settings.setSettingValue('LiteGraph.Canvas.MinFontSizeForLOD', 0);
    const boxes = app.graph.groups.length ? app.graph.groups.map(g => [...g.pos, ...g.size])
        : app.graph.nodes.map(n => [n.pos[0], n.pos[1] - 30, n.size[0], n.size[1] + 30]);
    const x = Math.min(...boxes.map(b => b[0])), y = Math.min(...boxes.map(b => b[1]));
    const right = Math.max(...boxes.map(b => b[0] + b[2]));
    const bottom = Math.max(...boxes.map(b => b[1] + b[3]));
    const scale = Math.min(width / (right - x), 1), view = app.canvas.ds;
    const page = app.canvas.canvas.getBoundingClientRect();
    view.scale = scale;
    view.offset = [(left - page.left) / scale - x, (top - page.top) / scale - y];
    app.canvas.setDirty(true, true);
    return {x: left - 12, y: top - 12, width: (right - x) * scale + 24,
        height: (bottom - y) * scale + 24} }"""
_BOX = """values => { const box = app.graph.nodes[0];
    const add = (type, x, values) => { const node = LiteGraph.createNode(type);
        node.pos = [box.pos[0] + x, box.pos[1]]; app.graph.add(node);
        for (const w of node.widgets) if (w.name in values) w.value = values[w.name];
        return node };
    box.size = [400, box.size[1]];
    add('LoadImage', -380, {image: values.photo}).connect(0, box, 'image');
    const voice = add('LoadAudio', -380, {audio: 'voice.wav'});
    voice.pos = [voice.pos[0], voice.pos[1] + 400];
    voice.connect(0, box, 'audio');
    const save = add('SaveVideo', 460, {});
    save.size = [400, 460];
    box.connect('video', save, 'video');
    for (const node of [box, ...box.subgraph.nodes]) for (const w of node.widgets ?? [])
        if (w.name in values) w.value = values[w.name] }"""


def main() -> None:
    """Start server and browser, and take every picture."""
    chromium = shutil.which("chromium")
    if chromium is None:
        raise SystemExit("There is no Chromium; get it with `apt-get install chromium`.")
    IMAGES.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        server = Server(Installation(find_comfyui(), cache=ROOT / ".cache"), Path(folder))
        fill_folders(server.base, tiny=chosen_set(), examples=ROOT / "workflows" / "inputs")
        draw_photos(server.base / "input")
        shorten_voices(server.base / "input")
        server.start()
        try:
            with open_page(server.url, chromium=chromium, profile=Path(folder) / "profile") as page:
                _take_all(GraphPage(page))
        finally:
            server.stop()


def chosen_set() -> TinySet:
    """Give the set whose folder the command names, or the tests' own."""
    if len(sys.argv) < 2:
        return tiny_set()
    trained = TrainedSet(Path(sys.argv[1]).resolve())
    return trained if trained.base.is_file() else TinySet(trained.folder)


def draw_photos(folder: Path) -> None:
    """Draw photos like those a trained set learned from into a server's input folder."""
    for people in TEMPLATES.values():
        photo = draw_scenes(1, people=people)[0].photo
        Image.fromarray(photo.numpy()).save(folder / f"drawn_{people}.png")


def shorten_voices(folder: Path) -> None:
    """Cut the examples' voices in a server's input folder to one segment."""
    for name, seconds in VOICES.items():
        channels, rate = sounds.read(folder / name)
        kept = (channels[:, : round(seconds * rate)] * 32767).astype("int16")
        sounds.write(folder / name, list(kept), rate=rate)


def _take_all(page: GraphPage) -> None:
    for name, people in TEMPLATES.items():
        page.open(name)
        fill(page, people=people)
        _run(page)
        page.video()
        _take(page, name)
        _download(page, "MTK_PreviewStrip", "preview_strip" if people == 1 else "strip_of_two")
    _download(page, "MTK_PreviewSpeakers", "preview_speakers")
    page.clear()
    page.add_from_library("Photo to talking video")
    # a trained set has no LoRA
    values = {**_values(1), "photo": "drawn_1.png", "strength": 0.0}
    page.page.evaluate(_BOX, values)
    page.fit()
    _run(page)
    page.video()
    _take(page, "subgraph")


def _values(people: int) -> dict[str, Any]:
    prompt = draw_scenes(1, people=people)[0].prompt
    return {**SETTINGS, "longest_side": 128 if people == 1 else 192, "prompt": prompt}


def fill(page: GraphPage, *, people: int) -> None:
    """Give the open template what a trained set was trained for."""
    values = _values(people)
    page.put("MTK_Sampler", **values)
    page.put("CLIPTextEncode", text=values["prompt"])
    page.put("LoadImage", image=f"drawn_{people}.png")


def _run(page: GraphPage) -> None:
    ended = page.run(seconds=500)
    if ended != "success":
        raise SystemExit(f"A workflow did not run: {ended}")


def _take(page: GraphPage, name: str) -> None:
    """Take a picture of the graph's groups, or of all nodes where there are none."""
    place: FloatRect = page.page.evaluate(_SHOW, [*_ORIGIN, _WIDTH])
    page.page.wait_for_timeout(_TOASTS_SECONDS * 1000)
    _save(page.page.screenshot(clip=place), name)


def _download(page: GraphPage, kind: str, name: str) -> None:
    """Keep the picture that a node shows."""
    with urllib.request.urlopen(page.picture(kind)) as answer:
        _save(answer.read(), name)


def _save(picture: bytes, name: str) -> None:
    image = Image.open(io.BytesIO(picture)).convert("RGB")
    image.save(IMAGES / f"{name}.webp", quality=84, method=6)


if __name__ == "__main__":
    main()
