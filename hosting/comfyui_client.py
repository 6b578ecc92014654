"""A client for the ComfyUI server in the same container, over HTTP and the websocket.

Each job keeps its files in one subfolder of `temp` and one of `output`. The folders have a random
name, and are deleted when the job ends.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import shutil
import time
import uuid
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp

Graph = dict[str, dict[str, Any]]
Message = dict[str, Any]

_PACK = Path(__file__).resolve().parents[1]
_STOP_SECONDS = 60.0
_POLL_SECONDS = 0.1

_log = logging.getLogger("multitalk.serverless")


class JobError(Exception):
    """A job that failed; the message is for the customer."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Settings:
    """Addresses, folders and time limits; docs/hosting.md lists the environment variables.

    Attributes:
        url: Address of ComfyUI.
        base: ComfyUI's base directory, which contains `temp` and `output`.
        workflows: Folder of the API workflows.
        results: Folder for the finished videos, such as a network volume; `None` sends the video as
            events.
        start_seconds: Longest time that ComfyUI may take to start.
        job_seconds: Longest time that a job may take.
    """

    url: str
    base: Path
    workflows: Path
    results: Path | None
    start_seconds: float
    job_seconds: float

    @classmethod
    def from_environment(cls) -> Settings:
        stated = os.environ
        results = stated.get("MULTITALK_RESULTS")
        workflows = stated.get("MULTITALK_WORKFLOWS", _PACK / "workflows" / "api")
        return cls(
            url=stated.get("COMFYUI_URL", "http://127.0.0.1:8188"),
            base=Path(stated.get("COMFYUI_BASE", "/ComfyUI")),
            workflows=Path(workflows),
            results=Path(results) if results else None,
            start_seconds=float(stated.get("COMFYUI_START_SECONDS", "300")),
            job_seconds=float(stated.get("MULTITALK_JOB_SECONDS", "3600")),
        )


class ComfyUI:
    """The ComfyUI server, used by one job.

    Attributes:
        settings: Address and time limits.
        folder: The job's subfolder of `temp` and of `output`.
        prompt_id: Id of the job's prompt. We choose it, so that the prompt can be stopped even if
            the request that queues it fails.
    """

    def __init__(self, session: aiohttp.ClientSession, settings: Settings) -> None:
        self.settings = settings
        self.prompt_id = str(uuid.uuid4())
        self.folder = f"multitalk-{self.prompt_id}"
        self._session = session

    async def wait_until_up(self) -> None:
        """Wait until the server answers; a new worker is still starting it."""
        deadline = time.monotonic() + self.settings.start_seconds
        while True:
            try:
                async with self._session.get("/system_stats"):
                    return
            except aiohttp.ClientConnectionError as reason:
                if time.monotonic() > deadline:
                    raise JobError(
                        f"ComfyUI does not answer at {self.settings.url} after "
                        f"{self.settings.start_seconds:g} s. Read its log, or set COMFYUI_URL."
                    ) from reason
            await asyncio.sleep(_POLL_SECONDS)

    async def upload(self, content: bytes, name: str) -> str:
        """Upload a file to the job's folder in `temp`; return its name for a loader node."""
        form = aiohttp.FormData()
        form.add_field("image", content, filename=name)
        form.add_field("type", "temp")
        form.add_field("subfolder", self.folder)
        async with self._session.post("/upload/image", data=form) as answer:
            if answer.status != 200:
                raise JobError(f"ComfyUI refused the upload of {name} (HTTP {answer.status}).")
            stored = await answer.json()
        return f"{stored['subfolder']}/{stored['name']} [temp]"

    @contextlib.asynccontextmanager
    async def run(self, graph: Graph, *, target: str) -> AsyncIterator[AsyncIterator[Message]]:
        """Queue the part of a graph that a node needs; yield ComfyUI's messages until it is done.

        Raises:
            JobError: If the graph is rejected, fails, is interrupted or takes too long.
        """
        # Open the websocket first, so that no message is missed.
        async with self._session.ws_connect(f"/ws?clientId={self.prompt_id}") as socket:
            await self._submit(graph, target=target)
            yield self._messages(socket)

    async def saved_file(self) -> dict[str, str]:
        """Return the only output file of the prompt: `filename`, `subfolder` and `type`."""
        while await self._is_running():  # the history is written after the last message
            await asyncio.sleep(_POLL_SECONDS)
        async with self._session.get(f"/history/{self.prompt_id}") as answer:
            outputs = (await answer.json())[self.prompt_id]["outputs"]
        files = [file for output in outputs.values() for file in output.get("images", ())]
        (entry,) = [file for file in files if file["type"] == "output"]
        return {key: entry[key] for key in ("filename", "subfolder", "type")}

    async def download(self, entry: Mapping[str, str]) -> bytes:
        """Return the content of a file that ComfyUI has saved."""
        async with self._session.get("/view", params=entry) as answer:
            return await answer.read()

    async def move(self, entry: Mapping[str, str], folder: Path) -> Path:
        """Move a file that ComfyUI has saved to a folder; the prompt's id becomes its name."""
        saved = self.settings.base / "output" / entry["subfolder"] / entry["filename"]
        target = folder / f"{self.prompt_id}{saved.suffix}"
        await asyncio.to_thread(shutil.move, saved, target)
        return target

    async def clean_up(self) -> None:
        """Stop the prompt if it still runs; delete the job's files and its history entry."""
        with contextlib.suppress(aiohttp.ClientError):  # then ComfyUI is gone
            await self._stop()
            await self._post("/history", {"delete": [self.prompt_id]})
        for kind in ("temp", "output"):
            folder = self.settings.base / kind / self.folder
            await asyncio.to_thread(shutil.rmtree, folder, ignore_errors=True)
            if folder.exists():
                _log.warning("%s could not be deleted", folder)

    async def _submit(self, graph: Graph, *, target: str) -> None:
        body = {
            "prompt": graph,
            "prompt_id": self.prompt_id,
            "client_id": self.prompt_id,
            "partial_execution_targets": [target],
        }
        async with self._session.post("/prompt", json=body) as answer:
            if answer.status != 200:
                raise JobError(_rejection(await answer.json()))

    async def _messages(self, socket: aiohttp.ClientWebSocketResponse) -> AsyncIterator[Message]:
        deadline = time.monotonic() + self.settings.job_seconds
        while True:
            try:
                got = await socket.receive(timeout=max(deadline - time.monotonic(), 0.001))
            except asyncio.TimeoutError:
                raise JobError(
                    f"The job was stopped after {self.settings.job_seconds:g} s. Send a shorter "
                    "voice, set fewer steps, or raise MULTITALK_JOB_SECONDS."
                ) from None
            if got.type in (aiohttp.WSMsgType.CLOSED, aiohttp.WSMsgType.ERROR):
                raise JobError("ComfyUI closed the connection during the job. Read its log.")
            if got.type != aiohttp.WSMsgType.TEXT:
                continue  # a latent preview
            message = json.loads(got.data)
            if message.get("data", {}).get("prompt_id") != self.prompt_id:
                continue
            _raise_failure(message)
            yield message
            if message["type"] == "execution_success":
                return

    async def _stop(self) -> None:
        await self._post("/queue", {"delete": [self.prompt_id]})  # if it still waits
        deadline = time.monotonic() + _STOP_SECONDS
        while await self._is_running():
            if time.monotonic() > deadline:
                _log.warning("ComfyUI did not stop prompt %s", self.prompt_id)
                return
            await self._post("/interrupt", {"prompt_id": self.prompt_id})
            await asyncio.sleep(_POLL_SECONDS)

    async def _is_running(self) -> bool:
        async with self._session.get("/queue") as answer:
            queue = await answer.json()
        return any(entry[1] == self.prompt_id for entry in queue["queue_running"])

    async def _post(self, path: str, content: Mapping[str, Any]) -> None:
        async with self._session.post(path, json=content):
            pass


def _rejection(said: Mapping[str, Any]) -> str:
    """Return ComfyUI's reasons for rejecting a graph as one line."""
    reasons = [
        f"{node['class_type']} (node {number}): {error['message']}: {error['details']}"
        for number, node in said.get("node_errors", {}).items()
        for error in node["errors"]
    ]
    error = said["error"]
    return _line("; ".join(reasons or [f"{error['message']}: {error['details']}"]))


def _raise_failure(message: Message) -> None:
    data = message["data"]
    if message["type"] == "execution_error":
        where = f"{data['node_type']} (node {data['node_id']})"
        raise JobError(f"{where}: {_line(data['exception_message'])}")
    if message["type"] == "execution_interrupted":
        raise JobError("The job was interrupted in ComfyUI.")


def _line(text: str) -> str:
    return " ".join(text.split())
