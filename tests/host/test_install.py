"""The pack as ComfyUI-Manager installs it runs *Try it now* in an environment of its own.

The environment sees ComfyUI's packages. Beside them it has what `requirements.txt` names, and
nothing that the repository's own environment brings.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import av
import numpy as np
import pytest
import torch

from comfyui_multitalk.dev.demo_strip import curves
from comfyui_multitalk.dev.train_tiny.mouth import correlation
from comfyui_multitalk.standalone.media import read_voice
from comfyui_multitalk.tests.host import graphs
from comfyui_multitalk.tests.support.comfyui import (
    ROOT,
    Installation,
    Launch,
    Server,
    UnavailableError,
    python_of,
)
from comfyui_multitalk.tests.support.package import packaged_files

if TYPE_CHECKING:
    from torch import Tensor

pytestmark = pytest.mark.host

MAX_PACKAGE_BYTES = 30_000_000
PACKAGES = """import importlib.metadata, json, sysconfig
found = importlib.metadata.distributions(path=[sysconfig.get_path("purelib")])
print(json.dumps({one.metadata["Name"].lower().replace("_", "-"): one.requires or []
                  for one in found}))"""
"""Prints the packages of an environment's own folder, each with what it requires."""


def requirements(folder: Path) -> list[str]:
    """Read a folder's requirements.txt."""
    lines = (folder / "requirements.txt").read_text(encoding="utf-8").splitlines()
    return [line for line in lines if line and not line.startswith("#")]


def name_of(requirement: str) -> str:
    """Give the package that a requirement names, in small letters with hyphens."""
    return re.split(r"[^\w.-]", requirement, maxsplit=1)[0].lower().replace("_", "-")


def zip_package(place: Path) -> None:
    """Write the archive that the registry would give out."""
    with zipfile.ZipFile(place, "w", zipfile.ZIP_DEFLATED) as archive:
        for name in packaged_files():
            archive.write(ROOT / name, name)


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Give the packed pack."""
    place = tmp_path_factory.mktemp("package") / "node.zip"
    zip_package(place)
    return place


class Fresh(Installation):
    """A ComfyUI whose Python was made for this test."""

    def __init__(self, root: Path, python: Path) -> None:
        self.root = root
        self.python = python


def make_environment(place: Path, *, comfyui: Path, pack: Path) -> Path:
    """Make an environment that sees ComfyUI's packages and install the pack's requirements."""

    def call(*command: str | Path) -> str:
        done = subprocess.run(list(map(str, command)), capture_output=True, text=True, check=False)
        if done.returncode:
            raise UnavailableError(f"{command}: {done.stderr[-400:]}")
        return done.stdout.strip()

    theirs = python_of(comfyui)
    sites = call(theirs, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))")
    call(theirs, "-m", "venv", "--without-pip", place)
    (own,) = place.glob("lib/python*/site-packages")
    (own / "comfyui.pth").write_text(f"{sites}\n")
    python = place / "bin" / "python"
    call(python, "-m", "pip", "install", "--quiet", "-r", pack / "requirements.txt")
    return python


@pytest.fixture(scope="module")
def installed(
    comfyui: Installation, archive: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Server]:
    """Give a server with empty folders, and the pack installed as ComfyUI-Manager does it."""
    base = tmp_path_factory.mktemp("installed")
    pack = base / "unpacked"
    with zipfile.ZipFile(archive) as file:
        file.extractall(pack)
    try:
        python = make_environment(base / "environment", comfyui=comfyui.root, pack=pack)
    except UnavailableError as reason:
        if os.environ.get("CI"):
            raise
        pytest.skip(f"The pack's requirements could not be installed. {reason}")
    for folder in ("models", "input"):
        (base / folder).mkdir()
    server = Server(Fresh(comfyui.root, python), base, Launch(pack=pack))
    try:
        server.start()
        yield server
    finally:
        server.stop()


def test_package_is_small(archive: Path) -> None:
    assert archive.stat().st_size < MAX_PACKAGE_BYTES


def test_environment_adds_only_what_the_requirements_need(installed: Server) -> None:
    python = installed.base / "environment" / "bin" / "python"
    done = subprocess.run([python, "-c", PACKAGES], capture_output=True, text=True, check=True)
    found: dict[str, list[str]] = json.loads(done.stdout)
    required = {name_of(line) for line in requirements(installed.base / "unpacked")}
    wanted, needed = set(required), set[str]()
    while wanted:
        name = wanted.pop()
        needed.add(name)
        wanted |= {name_of(line) for line in found.get(name, ())} - needed
    assert found.keys() <= needed
    assert "multitalk-wan-gguf" not in found


def test_try_it_now_makes_a_person_talk(installed: Server) -> None:
    graph = json.loads((graphs.FOLDER / "api" / "try_it_now.json").read_text())
    history = installed.run(graph)
    assert history["status"]["status_str"] == "success", history["status"]
    (video,) = (installed.base / "output").rglob("*.mp4")
    frames = read_frames(video)
    assert frames.shape == (51, 128, 128, 3)
    wanted, seen = curves(frames, read_voice(video))
    assert correlation(wanted[5:], seen[5:]) > 0.8


def read_frames(video: Path) -> Tensor:
    """Decode a video: `(T, H, W, 3)` uint8."""
    with av.open(str(video)) as file:
        pictures: list[Any] = [frame.to_ndarray(format="rgb24") for frame in file.decode(video=0)]
    return torch.from_numpy(np.stack(pictures))
