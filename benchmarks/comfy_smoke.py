"""The 14B-shaped MODEL in ComfyUI: `python -m comfyui_multitalk.benchmarks.comfy_smoke COMFYUI`.

Writes weights of the released sizes with random content (17 GB, into TMPDIR), then runs the
workflow of one speaker in a ComfyUI server, one segment of 81 frames at 480p, under each memory
management: all on the card, no more than `--low-gb` of it, and ComfyUI's dynamic VRAM. Reports the
time of a step, how long an interrupt takes, what is left on the card after `/free`, and what the
server says of its loading. `--scale small --device cpu` tries the script itself in a minute.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

from ..tests.host import graphs
from ..tests.host.digests import free
from ..tests.support.comfyui import ROOT, Installation, Launch, Server
from ..tests.support.websocket import Listener
from .random_weights import full_sizes, small_sizes, write_files

MEMORY = ("normal", "low", "dynamic")
_FRAMES, _FPS = 81, 25
_GB = 1e9
_LOADING = re.compile(r"^.*(?:loaded (?:partially|completely)|dynamic ?VRAM).*$", re.I | re.M)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns 1 if a memory management failed."""
    options = _parse(arguments)
    os.environ["COMFYUI_PATH"] = str(options.comfyui)
    full = options.scale == "full"
    runs: dict[str, Any] = {}
    with tempfile.TemporaryDirectory(prefix="comfy-smoke-") as name:
        folder = Path(name)
        (folder / "weights").mkdir()
        sizes = full_sizes() if full else small_sizes()
        files = write_files(folder / "weights", sizes, seed=0)
        installation = Installation(options.comfyui.resolve(), cache=ROOT / ".cache")
        for memory in options.memory:
            _log(f"memory: {memory}")
            launch = Launch(
                arguments=_arguments(memory, options),
                model_paths=f"{Launch().model_paths}  custom_nodes: {ROOT}/tests/host/probes\n",
            )
            server = Server(installation, folder / memory, launch)
            graphs.fill_folders(server.base, tiny=files, examples=ROOT / "examples")
            runs[memory] = _run(server, full=full)
    report = {"device": _device(options), "scale": options.scale, "runs": runs}
    if options.out:
        options.out.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    sys.stdout.write(table(report) + "\n")
    return int(any("failure" in run for run in runs.values()))


def table(report: dict[str, Any]) -> str:
    """Give the figures as a Markdown table with a column for each memory management."""
    good = {name: run for name, run in report["runs"].items() if "failure" not in run}
    lines = [f"{report['device']}, sizes: {report['scale']}", "", f"| | {' | '.join(good)} |"]
    lines.append("|---|" + "---|" * len(good))
    for label in next(iter(good.values()), {"seconds": {}})["seconds"]:
        figures = " | ".join(f"{run['seconds'][label]:.3f}" for run in good.values())
        lines.append(f"| {label}, s | {figures} |")
    for label in next(iter(good.values()), {"bytes": {}})["bytes"]:
        figures = " | ".join(f"{run['bytes'][label] / _GB:.2f}" for run in good.values())
        lines.append(f"| {label}, GB | {figures} |")
    for name, run in report["runs"].items():
        lines += ["", f"{name}: {run.get('failure', '')}".rstrip(), *run.get("loading", [])]
    return "\n".join(lines)


def _run(server: Server, *, full: bool) -> dict[str, Any]:
    """Start a server, sample two steps, interrupt a third run, free everything."""
    try:
        server.start()
        empty = _on_card(server)
        with _Peak(server) as peak:
            first, second = _steps(server, _graph(server, full=full, steps=2))
        graph = _graph(server, full=full, steps=50)
        interrupt = _interrupt(server, graph, after=1.0 if full else 0.02)
        free(server)
        time.sleep(5 if full else 1)
        return {
            "seconds": {
                "start to first step (loads, encodes)": first,
                "a step of three passes": second,
                "interrupt": interrupt,
            },
            "bytes": {
                "peak use of the card": peak.bytes,
                "allocated before": empty,
                "allocated after /free": _on_card(server),
            },
            "loading": _LOADING.findall(server.log),
        }
    except (AssertionError, OSError) as error:
        return {"failure": str(error)[-4000:], "loading": _LOADING.findall(server.log)}
    finally:
        server.stop()


def _graph(server: Server, *, full: bool, steps: int) -> graphs.Graph:
    frames = _FRAMES if full else 33
    voice = server.base / "input" / "voice_of_a_segment.wav"
    graphs.write_tone(voice, seconds=frames / _FPS)
    settings = {"size": "480p", "segment_frames": _FRAMES, "motion_frames": 25} if full else {}
    graph = graphs.load(graphs.WORKFLOWS[0], **settings, steps=steps, seed=steps)
    graphs.node(graph, "LoadAudio")["inputs"]["audio"] = voice.name
    return graph


def _steps(server: Server, graph: graphs.Graph) -> tuple[float, float]:
    """Run a graph of two steps; give the seconds to the first and from it to the second."""
    listener = Listener(server.url, client="steps")
    began = time.perf_counter()
    prompt = server.submit(graph, client="steps")
    times = [time.perf_counter() for _ in _progress(listener, prompt)]
    listener.close()
    history = server.wait(prompt)
    if history["status"]["status_str"] != "success" or len(times) != 2:
        raise AssertionError(f"{len(times)} steps; {json.dumps(history['status'])}")
    return times[0] - began, times[1] - times[0]


def _interrupt(server: Server, graph: graphs.Graph, *, after: float) -> float:
    """Interrupt a run some seconds into its second step; give the seconds until it says so."""
    listener = Listener(server.url, client="interrupt")
    prompt = server.submit(graph, client="interrupt")
    messages = _progress(listener, prompt)
    next(messages)
    time.sleep(after)
    began = time.perf_counter()
    server.post("/interrupt", {"prompt_id": prompt})
    for _ in messages:
        pass
    seconds = time.perf_counter() - began
    listener.close()
    kinds = [kind for kind, _ in server.wait(prompt)["status"]["messages"]]
    if "execution_interrupted" not in kinds:
        raise AssertionError(f"not interrupted: {kinds}")
    return seconds


def _progress(listener: Listener, prompt: str) -> Iterator[int]:
    """Give the sampler's steps as they are done, until the prompt ends in any way."""
    ends = {"execution_success", "execution_error", "execution_interrupted"}
    for message in listener.messages():
        data = message.get("data", {})
        if data.get("prompt_id") != prompt:
            continue
        if message["type"] in ends:
            return
        if message["type"] == "progress":
            yield data["value"]


class _Peak:
    """Watches how much of the card is used while a block runs."""

    def __init__(self, server: Server) -> None:
        self.bytes = 0
        self._server = server
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._watch)

    def __enter__(self) -> _Peak:
        self._thread.start()
        return self

    def __exit__(self, *_error: object) -> None:
        self._done.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._done.wait(0.2):
            device = self._server.get("/system_stats")["devices"][0]
            if device["type"] == "cuda":
                self.bytes = max(self.bytes, device["vram_total"] - device["vram_free"])


def _on_card(server: Server) -> int:
    return int(server.get("/multitalk_tests/memory")["card"])


def _arguments(memory: str, options: argparse.Namespace) -> tuple[str, ...]:
    """Give ComfyUI's arguments for a memory management."""
    if options.device == "cpu":
        return ("--cpu",)
    if memory == "dynamic":
        return ()
    if memory == "normal":
        return ("--disable-dynamic-vram",)
    total = torch.cuda.get_device_properties(0).total_memory / 2**30
    return ("--disable-dynamic-vram", "--reserve-vram", f"{total - options.low_gb:.1f}")


def _device(options: argparse.Namespace) -> str:
    return torch.cuda.get_device_name() if options.device == "cuda" else "CPU"


def _log(text: str) -> None:
    sys.stderr.write(text + "\n")


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="comfy_smoke", description=__doc__)
    parser.add_argument("comfyui", type=Path, help="folder of ComfyUI, which has its own .venv")
    parser.add_argument("--scale", choices=("full", "small"), default="full")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--memory", nargs="+", choices=MEMORY, default=MEMORY)
    parser.add_argument(
        "--low-gb", type=float, default=12.0, help="GiB of the card to use under 'low'"
    )
    parser.add_argument("--out", type=Path, help="JSON file for the report")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    raise SystemExit(main())
