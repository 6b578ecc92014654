"""A real ComfyUI for the tests: found, given what the pack needs, started and talked to.

Looked for at `COMFYUI_PATH`, else around the pack (`ComfyUI/custom_nodes/<pack>`), else at
`~/comfy/ComfyUI`; its Python is `COMFYUI_PYTHON`, else that of its `.venv` or `venv`, else ours.
ComfyUI's environment stays as it is: what the pack needs beyond it goes into an overlay in
`.cache`, as ComfyUI-Manager would install it, with pytest for the tests inside ComfyUI's Python.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
HOW_TO_GET = (
    "Get ComfyUI 0.23 or later (https://github.com/comfyanonymous/ComfyUI), install its "
    "requirements into its .venv, and set COMFYUI_PATH to its folder"
)
_START_SECONDS = 300  # 10 on a machine that does nothing else
_DEPENDENCY = re.compile(r"^dependencies = \[(.*?)\]", re.MULTILINE | re.DOTALL)
_PYTEST = re.compile(r'"(pytest==[^"]+)"')


class UnavailableError(Exception):
    """There is no ComfyUI to test with; the message says how to get one."""


class Installation:
    """A ComfyUI and a Python that runs it with the pack.

    Attributes:
        root: ComfyUI's folder.
        python: The interpreter.
    """

    def __init__(self, root: Path, *, cache: Path) -> None:
        self.root = root
        self.python = _with_dependencies(python_of(root), cache=cache)

    @property
    def environment(self) -> dict[str, str]:
        """Environment for a child process: no network, one thread."""
        return {**os.environ, "HF_HUB_OFFLINE": "1", "DO_NOT_TRACK": "1", "OMP_NUM_THREADS": "1"}


def find_comfyui() -> Path:
    """Find a ComfyUI.

    Raises:
        UnavailableError: If there is none.
    """
    stated = os.environ.get("COMFYUI_PATH")
    around = [ROOT.parent.parent] if ROOT.parent.name == "custom_nodes" else []
    places = [Path(stated).expanduser()] if stated else [*around, Path.home() / "comfy" / "ComfyUI"]
    for place in places:
        if (place / "main.py").is_file() and (place / "comfy").is_dir():
            return place.resolve()
    looked = ", ".join(str(place) for place in places)
    raise UnavailableError(f"There is no ComfyUI at {looked}. {HOW_TO_GET}.")


@functools.cache
def installation() -> Installation:
    """Give the ComfyUI to test with.

    Raises:
        UnavailableError: If there is none, or its Python lacks what ComfyUI needs.
        RuntimeError: The latter in CI, where it must not pass for a test that may be skipped.
    """
    root = find_comfyui()
    try:
        return Installation(root, cache=ROOT / ".cache")
    except UnavailableError as reason:
        if os.environ.get("CI"):
            raise RuntimeError(str(reason)) from reason
        raise


@dataclass(frozen=True, kw_only=True, slots=True)
class Launch:
    """How a server is started, where it differs from the usual.

    Attributes:
        pack: Folder of the pack.
        model_paths: Content of `extra_model_paths.yaml`; `elsewhere` in the server's folder is one
            of diffusion models by default.
        wrapper: Command that runs the server's command.
        environment: Variables to add.
        arguments: Of ComfyUI, for its device and memory.
    """

    pack: Path = ROOT
    model_paths: str = "tests:\n  base_path: {base}\n  diffusion_models: elsewhere\n"
    wrapper: tuple[str, ...] = ()
    environment: Mapping[str, str] = field(default_factory=dict)
    arguments: tuple[str, ...] = ("--cpu",)


class Server:
    """A running ComfyUI server with the pack, in a folder of its own.

    Attributes:
        base: Its folder, with `models`, `input` and `output`.
        url: Where it listens.
    """

    def __init__(
        self, installation: Installation, base: Path, launch: Launch | None = None
    ) -> None:
        self.base = base
        self.url = f"http://127.0.0.1:{_free_port()}"
        self._installation = installation
        self._launch = launch or Launch()
        self._log = base / "server.log"
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start and wait until it answers."""
        settings = self.base / "user" / "default" / "comfy.settings.json"
        settings.parent.mkdir(parents=True)
        settings.write_text(json.dumps({"Comfy.TutorialCompleted": True}))
        model_paths = self.base / "extra.yaml"
        model_paths.write_text(self._launch.model_paths.replace("{base}", str(self.base)))
        packs = self.base / "custom_nodes"
        packs.mkdir()
        (packs / "multitalk-wan-gguf").symlink_to(self._launch.pack, target_is_directory=True)
        port = self.url.rpartition(":")[2]
        command = [str(self._installation.python), "main.py", *self._launch.arguments]
        command += [
            "--port",
            port,
            "--listen",
            "127.0.0.1",
            "--disable-auto-launch",
            "--disable-api-nodes",
        ]
        command += ["--database-url", "sqlite:///:memory:", "--base-directory", str(self.base)]
        command += ["--extra-model-paths-config", str(model_paths)]
        command += ["--preview-method", "latent2rgb"]
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                [*self._launch.wrapper, *command],
                cwd=self._installation.root,
                env={**self._installation.environment, **self._launch.environment},
                stdout=log,
                stderr=subprocess.STDOUT,
            )
        deadline = time.monotonic() + _START_SECONDS
        while not self._answers():
            if self._process.poll() is not None or time.monotonic() > deadline:
                raise AssertionError(f"ComfyUI did not start:\n{self.log[-4000:]}")
            time.sleep(0.2)

    def stop(self) -> None:
        """Stop the process."""
        if self._process is not None:
            self._process.terminate()
            try:
                self._process.wait(10)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()

    @property
    def log(self) -> str:
        """What the server has printed."""
        return self._log.read_text(errors="replace")

    def get(self, path: str) -> Any:
        """Fetch a JSON document."""
        with urllib.request.urlopen(self.url + path, timeout=60) as answer:
            return json.load(answer)

    def post(self, path: str, content: Mapping[str, Any]) -> tuple[int, Any]:
        """Send a JSON document; give the HTTP status and the JSON answer, if there is one."""
        request = urllib.request.Request(
            self.url + path,
            data=json.dumps(content).encode(),
            headers={"Content-Type": "application/json"},
        )
        try:
            with urllib.request.urlopen(request, timeout=60) as answer:
                status, text = answer.status, answer.read()
        except urllib.error.HTTPError as error:
            status, text = error.code, error.read()
        return status, json.loads(text) if text.strip() else None

    def submit(self, prompt: Mapping[str, Any], *, client: str = "tests") -> str:
        """Queue a prompt that must be accepted; give its id."""
        status, answer = self.post("/prompt", {"prompt": prompt, "client_id": client})
        if status != 200:
            raise AssertionError(f"rejected: {json.dumps(answer)[:4000]}")
        return str(answer["prompt_id"])

    def wait(self, prompt_id: str, *, seconds: float = 600) -> dict[str, Any]:
        """Wait for a prompt to end; give its history."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            history = self.get(f"/history/{prompt_id}")
            if prompt_id in history:
                return dict(history[prompt_id])
            time.sleep(0.05)
        raise AssertionError(f"not done in {seconds} s:\n{self.log[-3000:]}")

    def run(self, prompt: Mapping[str, Any]) -> dict[str, Any]:
        """Queue a prompt and wait for it."""
        return self.wait(self.submit(prompt))

    def _answers(self) -> bool:
        try:
            self.get("/system_stats")
        except OSError:
            return False
        return True


def failure(history: Mapping[str, Any]) -> dict[str, Any]:
    """Give the `execution_error` of a history that must have failed."""
    found = [detail for kind, detail in history["status"]["messages"] if kind == "execution_error"]
    assert found, f"no execution error in {history['status']}"
    return dict(found[0])


def python_of(root: Path) -> Path:
    """Give the Python that runs the ComfyUI in a folder."""
    stated = os.environ.get("COMFYUI_PYTHON")
    if stated:
        return Path(stated)
    for folder in (".venv", "venv"):
        python = root / folder / "bin" / "python"
        if python.is_file():
            return python
    return Path(sys.executable)


def _with_dependencies(python: Path, *, cache: Path) -> Path:
    """Give a Python that sees all that `python` sees, the pack's dependencies and our pytest.

    Raises:
        UnavailableError: If `python` cannot run ComfyUI or the dependencies cannot be installed.
    """
    project = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    listed, runner = _DEPENDENCY.search(project), _PYTEST.search(project)
    assert listed is not None
    assert runner is not None
    wanted = [*re.findall(r'"([^"]+)"', listed[1]), runner[1]]
    modules = ", ".join(re.split(r"[<>=~! ]", name)[0].replace("-", "_") for name in wanted)
    if _succeeds(python, "-c", f"import torch, aiohttp, {modules}"):
        return python
    if not _succeeds(python, "-c", "import torch, aiohttp"):
        raise UnavailableError(
            f"{python} has not what ComfyUI needs (torch, aiohttp). {HOW_TO_GET}, or set "
            "COMFYUI_PYTHON to the Python that runs it."
        )
    key = hashlib.sha256(f"{python}\n{wanted}".encode()).hexdigest()[:12]
    overlay = cache / f"comfyui-python-{key}"
    if not overlay.is_dir():
        _make_overlay(overlay, python, wanted)
    return overlay / "bin" / "python"


def _make_overlay(overlay: Path, python: Path, wanted: list[str]) -> None:
    """Make it under another name first: two test processes may both find it missing."""
    draft = overlay.with_name(f"{overlay.name}.{os.getpid()}")
    sites = subprocess.run(
        [str(python), "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"],
        capture_output=True,
        text=True,
        check=True,
    ).stdout.strip()
    try:
        _call(python, "-m", "venv", "--without-pip", str(draft))
        own = next(draft.glob("lib/python*/site-packages"))
        (own / "comfyui.pth").write_text(f"{sites}\n")
        _call(draft / "bin" / "python", "-m", "pip", "install", "--quiet", *wanted)
        with contextlib.suppress(OSError):  # the other was first
            draft.rename(overlay)
    except subprocess.CalledProcessError as error:
        raise UnavailableError(
            f"The pack's dependencies ({', '.join(wanted)}) could not be installed for {python}: "
            f"{error.stderr.strip()[-300:]}. Install them there by hand."
        ) from error
    finally:
        shutil.rmtree(draft, ignore_errors=True)


def _call(python: Path, *arguments: str) -> None:
    subprocess.run([str(python), *arguments], capture_output=True, text=True, check=True)


def _succeeds(python: Path, *arguments: str) -> bool:
    return subprocess.run([str(python), *arguments], capture_output=True).returncode == 0


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
