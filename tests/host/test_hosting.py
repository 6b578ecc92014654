"""Hosted use: the worker on a server that has only the package, read-only, offline.

The server's models are on a volume that docs/hosting.md's `extra_model_paths.yaml` names. The first
two jobs are done by the fixture: cold and warm. The docs' figures come from them.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import importlib
import inspect
import io
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Coroutine, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import av
import pytest
from PIL import Image

from comfyui_multitalk.tests.host import graphs
from comfyui_multitalk.tests.support.comfyui import ROOT, Launch, Server
from comfyui_multitalk.tests.support.package import copy_package

if TYPE_CHECKING:
    from types import ModuleType

    from comfyui_multitalk.tests.support.comfyui import Installation
    from comfyui_multitalk.tests.support.tiny import TinySet

pytestmark = pytest.mark.host

HOSTING = ROOT / "hosting"
LOADERS = {
    "MTK_LoadAdapter", "MTK_LoadCLIPVision", "MTK_LoadUMT5", "MTK_LoadWan", "MTK_LoadWav2Vec2",
    "VAELoader",
}  # fmt: skip
PER_JOB = {"LoadImage", "LoadAudio", "MTK_AudioEmbeds", "MTK_Sampler", "SaveVideo"}
Event = dict[str, Any]
Tree = dict[str, tuple[int, int]]


@dataclass
class Hosted:
    """A server as hosts run it, and how its files looked before the first job."""

    server: Server
    pack: Path
    home: Path
    network_log: Path
    before: Tree

    def tree(self) -> Tree:
        """Give size and time of every file where nothing may be written."""
        base = self.server.base
        own = [base / name for name in ("output", "temp", "user", "server.log")]
        files: Tree = {}
        for root in (self.pack, self.home, base):
            for folder, _, names in os.walk(root):
                for path in (Path(folder) / name for name in names):
                    if "__pycache__" not in path.parts and not any(map(path.is_relative_to, own)):
                        status = path.lstat()
                        files[str(path)] = (status.st_size, status.st_mtime_ns)
        return files


def model_paths() -> str:
    """Give the `extra_model_paths.yaml` of docs/hosting.md."""
    page = (ROOT / "docs" / "hosting.md").read_text(encoding="utf-8")
    (block,) = re.findall(r"```yaml\n(.*?)```", page, flags=re.DOTALL)
    return block


@pytest.fixture(scope="module")
def hosted(
    comfyui: Installation, tiny: TinySet, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Hosted]:
    """Give the running server."""
    place = tmp_path_factory.mktemp("hosted")
    volume, pack, home, base = (place / name for name in ("volume", "pack", "home", "base"))
    graphs.fill_models(volume / "models", tiny=tiny)
    copy_package(pack)
    home.mkdir()
    base.mkdir()
    environment = {
        "HOME": str(home),
        "XDG_CACHE_HOME": str(home / ".cache"),
        "TMPDIR": str(home),
        "PYTHONPATH": str(ROOT / "tests" / "support" / "offline"),
        "NETWORK_LOG": str(place / "network.log"),
    }
    paths = model_paths()
    assert "/runpod-volume/" in paths
    launch = Launch(
        pack=pack,
        model_paths=paths.replace("/runpod-volume/", f"{volume}/"),
        wrapper=without_override(),
        environment=environment,
    )
    server = Server(comfyui, base, launch)
    set_writable(pack, False)
    try:
        server.start()
        hosted = Hosted(server, pack, home, place / "network.log", before={})
        hosted.before = hosted.tree()
        yield hosted
    finally:
        server.stop()
        set_writable(pack, True)


def set_writable(folder: Path, writable: bool) -> None:
    """Take write permission from every folder and file, or give it back."""
    for path in (folder, *folder.rglob("*")):
        mode = path.stat().st_mode
        path.chmod(mode | 0o200 if writable else mode & ~0o222)


def without_override() -> tuple[str, ...]:
    """Give a wrapper that takes the right to write everywhere from root, where that is us."""
    if os.geteuid() != 0 or shutil.which("setpriv") is None:
        return ()
    return ("setpriv", "--bounding-set=-dac_override,-dac_read_search,-fowner")


@pytest.fixture(scope="module")
def worker() -> Iterator[ModuleType]:
    """Give the handler's module, imported as a script's folder is."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(HOSTING)
        yield importlib.import_module("handler")
    for name in ("handler", "comfyui_client"):
        sys.modules.pop(name)


@pytest.fixture(autouse=True)
def environment(hosted: Hosted, monkeypatch: pytest.MonkeyPatch) -> None:
    """Point the handler at the server."""
    point_at(hosted, monkeypatch)


def point_at(hosted: Hosted, patch: pytest.MonkeyPatch) -> None:
    """Set the handler's environment variables."""
    patch.setenv("COMFYUI_URL", hosted.server.url)
    patch.setenv("COMFYUI_BASE", str(hosted.server.base))
    patch.setenv("MULTITALK_JOB_SECONDS", "300")


@pytest.fixture(scope="module")
def jobs(hosted: Hosted, worker: ModuleType) -> list[list[Event]]:
    """Give the events of a first and of a second job, with another photo and another voice."""
    with pytest.MonkeyPatch.context() as patch:
        point_at(hosted, patch)
        return [
            do(worker, job(image=photo("red"), audio=voice(0.6), prompt="a man")),
            do(worker, job(image=photo("blue"), audio=voice(0.8), prompt="a woman")),
        ]


def photo(colour: str = "green") -> bytes:
    """Make a small picture of one colour."""
    file = io.BytesIO()
    Image.new("RGB", (70, 70), colour).save(file, "PNG")
    return file.getvalue()


def voice(seconds: float = 0.6) -> bytes:
    """Make a short recording."""
    file = io.BytesIO()
    graphs.write_tone(file, seconds=seconds)
    return file.getvalue()


def job(**fields: Any) -> dict[str, Any]:
    """Make a job: bytes become base64, and the sampler is a small one."""
    sampler = {**graphs.SMALL, "text_guidance": 1.0, **fields.pop("sampler", {})}
    given = {"image": photo(), "audio": voice(), "sampler": sampler, **fields}
    encoded = {
        name: base64.b64encode(value).decode() if isinstance(value, bytes) else value
        for name, value in given.items()
    }
    return {"id": "test", "input": encoded}


def do(worker: ModuleType, job: dict[str, Any]) -> list[Event]:
    """Do a job to its end."""

    async def collect() -> list[Event]:
        return [event async for event in worker.handler(job)]

    return in_a_loop(collect())


def in_a_loop(work: Coroutine[Any, Any, Any]) -> Any:
    """Run it in a thread: this one has a loop already while a browser test's page is open."""
    with ThreadPoolExecutor(1) as thread:
        return thread.submit(asyncio.run, work).result()


def error(events: list[Event]) -> str:
    """Give the message of a job that must have failed."""
    assert list(events[-1]) == ["error"], events
    return str(events[-1]["error"])


def left_behind(hosted: Hosted) -> list[str]:
    """List what jobs have left in ComfyUI."""
    places = [hosted.server.base / kind for kind in ("temp", "output")]
    files = [str(path) for place in places for path in place.rglob("*") if path.is_file()]
    queue = hosted.server.get("/queue")
    return [
        *files,
        *hosted.server.get("/history"),
        *queue["queue_running"],
        *queue["queue_pending"],
    ]


def test_second_job_finds_every_loader_warm(
    jobs: list[list[Event]], record_testsuite_property: Callable[[str, object], None]
) -> None:
    cold, warm = (events[-1] for events in jobs)
    record_testsuite_property("cold_seconds", cold["seconds"])
    record_testsuite_property("warm_seconds", warm["seconds"])
    assert cold["cached"] == []
    assert set(warm["cached"]) >= LOADERS
    assert not set(warm["cached"]) & PER_JOB


def test_job_streams_its_progress_in_order(jobs: list[list[Event]]) -> None:
    for events in jobs:
        kinds = [event["status"] for event in events]
        assert kinds == sorted(kinds, key=["queued", "running", "video", "done"].index)
        sampled = [event for event in events if event.get("node") == "MTK_Sampler"]
        assert {"status": "running", "node": "MTK_Sampler", "step": 1, "steps": 1} in sampled


def test_job_returns_a_video_as_long_as_the_voice(jobs: list[list[Event]]) -> None:
    for events, frames in zip(jobs, (15, 20), strict=True):
        with av.open(io.BytesIO(video_of(events))) as file:
            assert sum(1 for _ in file.decode(video=0)) == frames
            assert file.streams.audio


def video_of(events: list[Event]) -> bytes:
    """Join the parts of a video."""
    parts = [event for event in events if event["status"] == "video"]
    assert [part["part"] for part in parts] == list(range(1, parts[0]["parts"] + 1))
    return b"".join(base64.b64decode(part["data"]) for part in parts)


def test_job_leaves_nothing_in_comfyui(hosted: Hosted, jobs: list[list[Event]]) -> None:
    assert left_behind(hosted) == []


def test_package_writes_nothing_but_output_and_temp(
    hosted: Hosted, jobs: list[list[Event]]
) -> None:
    assert hosted.tree() == hosted.before


def test_package_reaches_for_no_network(hosted: Hosted, jobs: list[list[Event]]) -> None:
    assert not hosted.network_log.exists() or hosted.network_log.read_text() == ""


def test_large_video_comes_in_parts_runpod_takes(
    worker: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(worker, "PART_BYTES", 1000)
    events = do(worker, job(sampler={"seed": 5}))
    content = video_of(events)
    assert sum(event["status"] == "video" for event in events) == -(-len(content) // 1000) > 1
    with av.open(io.BytesIO(content)) as file:
        assert file.streams.video


def test_video_goes_to_the_folder_of_results(
    worker: ModuleType, hosted: Hosted, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MULTITALK_RESULTS", str(tmp_path))
    (path,) = [event["path"] for event in do(worker, job()) if event["status"] == "done"]
    assert [str(file) for file in tmp_path.iterdir()] == [path]
    with av.open(path) as file:
        assert file.streams.video
    assert left_behind(hosted) == []


def test_two_voices_take_the_workflow_for_two(worker: ModuleType) -> None:
    voices = [base64.b64encode(voice(seconds)).decode() for seconds in (0.5, 0.6)]
    events = do(worker, job(audio=voices))
    assert [event["status"] for event in events if event["status"] == "done"] == ["done"]


BAD: dict[str, tuple[dict[str, Any], list[str]]] = {
    "no image": ({"image": None}, ["`image` is missing"]),
    "no base64": ({"image": "!!!"}, ["`image` is not valid base64"]),
    "a page for a photo": ({"image": b"<html></html>"}, ["<html>", "PNG, JPEG or WebP"]),
    "a photo for a voice": ({"audio": photo()}, ["`audio` begins with", "WAV, FLAC"]),
    "three voices": ({"audio": ["", "", ""]}, ["3 voices", "one or two"]),
    "unknown field": ({"url": "http://"}, ["['url']"]),
    "unknown setting": ({"sampler": {"model": "x"}}, ["['model']", "'steps'"]),
    "too many steps": (
        {"sampler": {"steps": 5000}},
        ["MTK_Sampler (node ", "bigger than max", "steps"],
    ),
    "short voice": ({"audio": voice(0.2)}, ["MTK_", "0.20 s", "0.4 s"]),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_bad_job_fails_with_one_sentence_and_leaves_nothing(
    worker: ModuleType, hosted: Hosted, name: str
) -> None:
    fields, parts = BAD[name]
    message = error(do(worker, job(**fields)))
    for part in parts:
        assert part in message
    assert "\n" not in message
    assert left_behind(hosted) == []


def test_cancelled_job_is_interrupted_and_leaves_nothing(
    worker: ModuleType, hosted: Hosted
) -> None:
    """As runpod does it: the task is cancelled while it waits for the next event."""

    async def cancel() -> None:
        sampling = asyncio.Event()

        async def work() -> None:
            async for event in worker.handler(job(sampler={"steps": 1000})):
                if "step" in event:
                    sampling.set()

        task = asyncio.create_task(work())
        await sampling.wait()
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task
        assert task.cancelled()

    in_a_loop(cancel())
    assert "Interrupting prompt" in hosted.server.log
    assert left_behind(hosted) == []


def test_late_job_is_interrupted_and_says_so(
    worker: ModuleType, hosted: Hosted, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MULTITALK_JOB_SECONDS", "2")
    message = error(do(worker, job(sampler={"steps": 1000})))
    assert "stopped after 2 s" in message
    assert "MULTITALK_JOB_SECONDS" in message
    assert left_behind(hosted) == []


def test_absent_comfyui_is_said(worker: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COMFYUI_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("COMFYUI_START_SECONDS", "0")
    assert "does not answer at http://127.0.0.1:9" in error(do(worker, job()))


def test_handler_is_what_runpod_takes_for_a_stream(worker: ModuleType) -> None:
    assert inspect.isasyncgenfunction(worker.handler)
    assert list(inspect.signature(worker.handler).parameters) == ["job"]


def test_script_without_runpod_says_how_to_get_it() -> None:
    blocked = "import sys; sys.modules['runpod'] = None; import handler; handler.main([])"
    done = subprocess.run(
        [sys.executable, "-c", blocked], cwd=HOSTING, capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    assert "pip install runpod" in done.stderr


def test_script_does_a_job_of_a_file_without_runpod(hosted: Hosted, tmp_path: Path) -> None:
    described, video = tmp_path / "job.json", tmp_path / "video.mp4"
    described.write_text(json.dumps(job()))
    done = subprocess.run(
        [sys.executable, str(HOSTING / "handler.py"), "--job", str(described), "-o", str(video)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout.splitlines()[-1])["status"] == "done"
    with av.open(str(video)) as file:
        assert file.streams.video
