"""A RunPod serverless worker: turns a photo and one or two voices into a talking video.

    python handler.py                              serves jobs; needs `pip install runpod`
    python handler.py --job job.json -o video.mp4  does one job without runpod, prints its events

ComfyUI runs in the same container and keeps the models loaded between jobs. `handler` is an async
generator, which RunPod calls a streaming handler. It yields progress events and the video in parts,
and ends with `{"status": "done"}` or `{"error": ...}`; RunPod marks a job with an error as failed.
If a job is cancelled or takes too long, it is interrupted in ComfyUI. Its files are always deleted.
docs/hosting.md describes the fields of a job.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import binascii
import contextlib
import json
import logging
import re
import sys
import time
from collections.abc import AsyncGenerator, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
from comfyui_client import ComfyUI, Graph, JobError, Message, Settings

Event = dict[str, Any]

MAX_UPLOAD_BYTES = 32_000_000
MAX_INLINE_BYTES = 7_000_000
"""RunPod stores at most 10 MB of a job's output; base64 makes the video a third larger."""
PART_BYTES = 600_000
"""RunPod accepts at most 1 MB in one event."""
_WORKFLOWS = {1: "photo_to_talking_video.json", 2: "two_speakers.json"}
_PICTURE = re.compile(rb"\x89PNG|\xff\xd8\xff|RIFF.{4}WEBP", re.DOTALL)
_SOUND = re.compile(rb"RIFF.{4}WAVE|fLaC|OggS|ID3|\xff[\xe2-\xff]|.{4}ftyp", re.DOTALL)
_KINDS = {
    "image": (_PICTURE, "a PNG, JPEG or WebP picture"),
    "audio": (_SOUND, "a WAV, FLAC, Ogg, MP3 or M4A recording"),
}


@dataclass(frozen=True, kw_only=True, slots=True)
class JobInput:
    """The checked input of a job.

    Attributes:
        image: The photo's file.
        voices: One or two sound files.
        prompt: The text prompt; `None` keeps the prompt of the workflow.
        sampler: Values for inputs of MultiTalk Sampler, by name.
    """

    image: bytes
    voices: tuple[bytes, ...]
    prompt: str | None
    sampler: Mapping[str, Any]

    @classmethod
    def from_job(cls, job: Mapping[str, Any]) -> JobInput:
        given = job.get("input")
        if not isinstance(given, Mapping):
            raise JobError("The job has no `input` object. Send `image` and `audio` in it.")
        known = {"image", "audio", "prompt", "sampler"}
        if unknown := sorted(set(given) - known):
            raise JobError(
                f"The input has the unknown fields {unknown}; it may have {sorted(known)}."
            )
        voices = given.get("audio")
        voices = voices if isinstance(voices, list) else [voices]
        if len(voices) not in _WORKFLOWS:
            raise JobError(f"`audio` has {len(voices)} voices; one or two are needed.")
        prompt = given.get("prompt")
        if prompt is not None and not isinstance(prompt, str):
            raise JobError(f"`prompt` is {prompt!r}; a string is needed.")
        sampler = given.get("sampler", {})
        if not isinstance(sampler, Mapping):
            raise JobError(f"`sampler` is {sampler!r}; an object of sampler inputs is needed.")
        return cls(
            image=_content(given.get("image"), "image"),
            voices=tuple(_content(voice, "audio") for voice in voices),
            prompt=prompt,
            sampler=sampler,
        )


async def handler(job: Mapping[str, Any]) -> AsyncGenerator[Event, None]:
    """Do one job for RunPod.

    Args:
        job: `{"id": ..., "input": {"image", "audio", "prompt", "sampler"}}`.

    Yields:
        `queued`, `running` and `video` events, then a `done` or an `error` event.
    """
    try:
        settings = Settings.from_environment()
        wanted = JobInput.from_job(job)
        async with (
            aiohttp.ClientSession(settings.url) as session,
            contextlib.aclosing(_events(wanted, ComfyUI(session, settings))) as events,
        ):
            async for event in events:
                yield event
    except JobError as reason:
        yield {"error": str(reason)}
    except (aiohttp.ClientError, ConnectionError) as reason:
        yield {
            "error": f"The connection to ComfyUI failed during the job ({reason}). Read its log."
        }


async def _events(wanted: JobInput, comfyui: ComfyUI) -> AsyncGenerator[Event, None]:
    began = time.monotonic()
    await comfyui.wait_until_up()
    try:
        graph, target = await _graph(wanted, comfyui)
        progress = Progress(graph)
        async with comfyui.run(graph, target=target) as messages:
            yield {"status": "queued", "prompt_id": comfyui.prompt_id}
            async for message in messages:
                if event := progress.read(message):
                    yield event
        saved = await comfyui.saved_file()
        done: Event = {"status": "done", "cached": progress.cached}
        if comfyui.settings.results is not None:
            done["path"] = str(await comfyui.move(saved, comfyui.settings.results))
        else:
            for part in _parts(await comfyui.download(saved)):
                yield part
        yield {**done, "seconds": round(time.monotonic() - began, 3)}
    finally:
        await comfyui.clean_up()


class Progress:
    """Turns ComfyUI's messages into a job's events.

    Attributes:
        cached: Types of the nodes whose results ComfyUI reused from the previous job.
    """

    def __init__(self, graph: Graph) -> None:
        self._graph = graph
        self.cached: list[str] = []

    def read(self, message: Message) -> Event | None:
        """Return the event for a message, or `None` if there is none."""
        kind, data = message["type"], message["data"]
        if kind == "execution_cached":
            self.cached = sorted(self._type_of(node) for node in data["nodes"])
        elif kind == "executing" and data["node"] is not None:
            return {"status": "running", "node": self._type_of(data["node"])}
        elif kind == "progress":
            steps = {"step": data["value"], "steps": data["max"]}
            return {"status": "running", "node": self._type_of(data["node"]), **steps}
        return None

    def _type_of(self, node: str) -> str:
        return str(self._graph[node]["class_type"])


async def _graph(wanted: JobInput, comfyui: ComfyUI) -> tuple[Graph, str]:
    """Upload the files and fill the API workflow; return it and the number of its Save node."""
    path = comfyui.settings.workflows / _WORKFLOWS[len(wanted.voices)]
    graph: Graph = json.loads(path.read_text(encoding="utf-8"))

    def inputs(kind: str) -> list[dict[str, Any]]:
        return [node["inputs"] for node in graph.values() if node["class_type"] == kind]

    (sampler,) = inputs("MTK_Sampler")
    free = {name for name, value in sampler.items() if not isinstance(value, list)}
    if wrong := sorted(set(wanted.sampler) - free):
        raise JobError(f"`sampler` has the unknown inputs {wrong}; it may have {sorted(free)}.")
    sampler.update(wanted.sampler)
    if wanted.prompt is not None:
        graph[sampler["positive"][0]]["inputs"]["text"] = wanted.prompt
    (photo,) = inputs("LoadImage")
    photo["image"] = await comfyui.upload(wanted.image, "photo")
    for number, node in enumerate(inputs("LoadAudio")):
        node["audio"] = await comfyui.upload(wanted.voices[number], f"voice{number}")
    (target,) = [number for number, node in graph.items() if node["class_type"] == "SaveVideo"]
    graph[target]["inputs"]["filename_prefix"] = f"{comfyui.folder}/video"
    return graph, target


def _parts(video: bytes) -> Iterator[Event]:
    if len(video) > MAX_INLINE_BYTES:
        raise JobError(
            f"The video has {len(video)} bytes; at most {MAX_INLINE_BYTES} can be sent as events. "
            "Set MULTITALK_RESULTS to a folder on a network volume."
        )
    starts = range(0, len(video), PART_BYTES)
    for number, start in enumerate(starts, start=1):
        data = base64.b64encode(video[start : start + PART_BYTES]).decode()
        yield {"status": "video", "part": number, "parts": len(starts), "data": data}


def _content(value: object, field: str) -> bytes:
    """Return the bytes of an input, which may be bytes or base64 (`data:...,` may precede it)."""
    if isinstance(value, str):
        try:
            content = base64.b64decode(value.rpartition(",")[2], validate=True)
        except binascii.Error as reason:
            raise JobError(
                f"`{field}` is not valid base64 ({reason}). Send a file in base64."
            ) from reason
    elif isinstance(value, bytes):
        content = value
    else:
        raise JobError(f"`{field}` is missing. Send a file in base64.")
    if len(content) > MAX_UPLOAD_BYTES:
        raise JobError(
            f"`{field}` has {len(content)} bytes; at most {MAX_UPLOAD_BYTES} are possible."
        )
    pattern, wanted = _KINDS[field]
    if not pattern.match(content):
        raise JobError(f"`{field}` begins with {content[:8]!r}; {wanted} is needed.")
    return content


def main(arguments: Sequence[str] | None = None) -> int:
    """Serve jobs, or do the one job of a file."""
    parser = argparse.ArgumentParser(
        description="Turn a photo and voices into a talking video.", allow_abbrev=False
    )
    parser.add_argument("--job", type=Path, help='file with one job: {"input": {...}}')
    parser.add_argument("-o", "--output", type=Path, help="file for the video of --job")
    options, _ = parser.parse_known_args(arguments)  # runpod has options of its own
    if options.job is not None:
        return asyncio.run(_do_here(json.loads(options.job.read_text()), options.output))
    try:
        import runpod
    except ImportError:
        parser.error("runpod is not installed. Run `pip install runpod`, or give --job.")
    runpod.serverless.start({"handler": handler, "return_aggregate_stream": True})
    return 0


async def _do_here(job: Mapping[str, Any], output: Path | None) -> int:
    video, failed = b"", False
    async for event in handler(job):
        video += base64.b64decode(event.pop("data", ""))
        failed = "error" in event
        sys.stdout.write(json.dumps(event) + "\n")
        sys.stdout.flush()
    if output is not None and video and not failed:
        output.write_bytes(video)
    return int(failed)


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO)
    sys.exit(main())
