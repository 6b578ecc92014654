"""A 14B MODEL in ComfyUI: `python -m comfyui_multitalk.dev.benchmarks.comfy_smoke COMFYUI`.

Writes weights of the released sizes with random content (17 GB, into TMPDIR). Then runs the
one-speaker workflow in a ComfyUI server, one segment of 81 frames at 480p, under each memory
management: everything on the card, at most `--low-gb` of it, and ComfyUI's dynamic VRAM. Reports
the time of a step, the delay of an interrupt (half a second at most), the memory left on the card
after `/free` (2 % of the peak at most), and the server's log lines about loading. The report is
rewritten after each. `--precision exact int8` runs all of it in both. `--scale small --device cpu`
tries the script itself in a minute.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import re
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, TypedDict, get_args

from ...tests.host import graphs
from ...tests.host.digests import free
from ...tests.support.comfyui import ROOT, Installation, Launch, Server
from ...tests.support.websocket import Listener
from ...wan_gguf_loader.ops import Precision
from .random_weights import full_sizes, small_sizes, write_files

MEMORY = ("normal", "low", "dynamic")
PRECISIONS = get_args(Precision)
_FRAMES, _FPS = 81, 25
_GB = 1e9
_LINE = r"[^\x1b\n]*"  # what is in colour ends with an escape
_LOADING = re.compile(
    rf"(?:\x1b\[\d+m)?\s*({_LINE}(?:loaded (?:partially|completely)|dynamic ?VRAM){_LINE})", re.I
)


class Run(TypedDict):
    """The figures of one memory management."""

    figures: dict[str, float]
    loading: list[str]
    failure: str


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns 1 if a memory management failed."""
    options = _parse(arguments)
    os.environ["COMFYUI_PATH"] = str(options.comfyui)
    full = options.scale == "full"
    card = _Card() if options.device == "cuda" else None
    runs: dict[str, Run] = {}
    report = {"device": card.name if card else "CPU", "scale": options.scale, "runs": runs}
    with tempfile.TemporaryDirectory(prefix="comfy-smoke-") as name:
        folder = Path(name)
        (folder / "weights").mkdir()
        sizes = full_sizes() if full else small_sizes()
        _log("weights")
        files = write_files(folder / "weights", sizes, seed=0)
        installation = Installation(options.comfyui.resolve(), cache=ROOT / ".cache")
        for memory, precision in itertools.product(options.memory, options.precision):
            name = memory if precision == "exact" else f"{memory}, {precision}"
            _log(f"memory: {name}")
            launch = Launch(
                arguments=_arguments(memory, card, low_gb=options.low_gb),
                model_paths=f"{Launch().model_paths}  custom_nodes: {ROOT}/tests/host/probes\n",
                environment={"OMP_NUM_THREADS": str(os.cpu_count())},
            )
            server = Server(installation, folder / name, launch)
            graphs.fill_folders(server.base, tiny=files, examples=ROOT / "workflows" / "inputs")
            runs[name] = _run(server, full=full, precision=precision)
            if options.out:
                options.out.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    sys.stdout.write(table(report) + "\n")
    return int(any(run["failure"] for run in runs.values()))


def table(report: dict[str, Any]) -> str:
    """Give the figures as a Markdown table with a column for each memory management."""
    runs: dict[str, Run] = report["runs"]
    lines = [f"{report['device']}, sizes: {report['scale']}", "", f"| | {' | '.join(runs)} |"]
    lines.append("|---|" + "---|" * len(runs))
    for label in dict.fromkeys(label for run in runs.values() for label in run["figures"]):
        figures = [run["figures"].get(label) for run in runs.values()]
        cells = ["-" if figure is None else f"{figure:.3f}" for figure in figures]
        lines.append(f"| {label} | {' | '.join(cells)} |")
    for name, run in runs.items():
        lines += ["", f"{name}: {run['failure']}".rstrip(), *run["loading"]]
    return "\n".join(lines)


def _run(server: Server, *, full: bool, precision: str) -> Run:
    """Start a server and measure; after a failure keep the figures measured so far."""
    run: Run = {"figures": {}, "loading": [], "failure": ""}
    try:
        began = time.perf_counter()
        server.start()
        run["figures"]["start of the server, s"] = time.perf_counter() - began
        _measure(server, run["figures"], full=full, precision=precision)
    except (AssertionError, OSError, ValueError) as error:
        run["failure"] = f"{type(error).__name__}: {str(error)[-4000:]}\n{server.log[-4000:]}"
    finally:
        server.stop()
    run["loading"] = _LOADING.findall(server.log)
    return run


def _measure(server: Server, figures: dict[str, float], *, full: bool, precision: str) -> None:
    """Sample two steps, interrupt a second run, free everything."""
    allocated, used = _allocated(server), _used(server)
    figures["allocated before, GB"], figures["card in use before, GB"] = allocated, used
    with _Peak(server) as peak:
        first, second = _steps(server, _graph(server, full=full, precision=precision, steps=2))
    figures["start to first step (loads, encodes), s"] = first
    figures["a step of three passes, s"] = second
    figures["most allocated, GB"] = most = _allocated(server, most=True)
    figures["card in use at the peak, GB"] = peak.used
    one_pass = {"text_guidance": 1.0, "audio_guidance": 1.0}
    graph = _graph(server, full=full, precision=precision, steps=50, **one_pass)
    figures["interrupt, s"] = _interrupt(server, graph, after=1.0 if full else 0.02)
    free(server)
    time.sleep(12 if full else 1)  # what an interrupt left ComfyUI collects every 10 s
    left = _allocated(server)
    figures["allocated after /free, GB"] = left
    figures["card in use after /free, GB"] = _used(server)
    if most:
        figures["left allocated, % of the most"] = 100 * (left - allocated) / most


def _graph(
    server: Server, *, full: bool, precision: str, steps: int, **guidance: float
) -> graphs.Graph:
    """Give the one-speaker workflow for one segment; the guidance decides the number of passes."""
    frames = _FRAMES if full else 33
    voice = server.base / "input" / "voice_of_a_segment.wav"
    graphs.write_tone(voice, seconds=frames / _FPS)
    settings = {"size": "480p", "segment_frames": _FRAMES, "motion_frames": 25} if full else {}
    graph = graphs.load(graphs.WORKFLOWS[0], **settings, **guidance, steps=steps, seed=steps)
    graphs.node(graph, "LoadAudio")["inputs"]["audio"] = voice.name
    graphs.node(graph, "MTK_LoadWan")["inputs"]["precision"] = precision
    return graph


def _steps(server: Server, graph: graphs.Graph) -> tuple[float, float]:
    """Run a graph of two steps; give the seconds of the first step and of the second."""
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
    """Interrupt a run some seconds into its second step; give the seconds until it says so.

    A step of the model's real size takes longer than that, so this falls between two blocks.
    """
    listener = Listener(server.url, client="interrupt")
    prompt = server.submit(graph, client="interrupt")
    messages = _progress(listener, prompt)
    if next(messages, None) is None:
        raise AssertionError(f"no step: {json.dumps(server.wait(prompt)['status'])}")
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
    """Yield the sampler's steps until the prompt ends, in whatever way."""
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
    """Measures the card's memory in use while a block runs, in GB."""

    def __init__(self, server: Server) -> None:
        self.used = 0.0
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
            self.used = max(self.used, _used(self._server))


def _used(server: Server) -> float:
    """Ask how much of the card is used, but for PyTorch's cache, in GB.

    Dynamic VRAM holds the weights in pages of its own, which PyTorch does not count as allocated.
    """
    device = server.get("/system_stats")["devices"][0]
    return (device["vram_total"] - device["vram_free"]) / _GB if device["type"] == "cuda" else 0


def _allocated(server: Server, *, most: bool = False) -> float:
    """Ask how much PyTorch has allocated on the card, now or at the peak, in GB."""
    return float(server.get("/multitalk_tests/memory")["most" if most else "card"]) / _GB


class _Card:
    """The card as the driver reports it; a CUDA context of our own would use some of its memory.

    Attributes:
        name: Its name.
        gb: Its memory in GiB.
    """

    def __init__(self) -> None:
        command = ["nvidia-smi", "--query-gpu=name,memory.total", "--format=csv,noheader,nounits"]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        self.name, mebibytes = done.stdout.splitlines()[0].rsplit(", ", 1)
        self.gb = float(mebibytes) / 1024


def _arguments(memory: str, card: _Card | None, *, low_gb: float) -> tuple[str, ...]:
    """Give ComfyUI's arguments for a memory management; without a card there is only one."""
    if card is None:
        return ("--cpu",)
    if memory == "dynamic":
        return ()
    if memory == "normal":
        return ("--disable-dynamic-vram",)
    return ("--disable-dynamic-vram", "--reserve-vram", f"{card.gb - low_gb:.1f}")


def _log(text: str) -> None:
    sys.stderr.write(f"{time.strftime('%H:%M:%S')} {text}\n")


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="comfy_smoke", description=__doc__)
    parser.add_argument("comfyui", type=Path, help="folder of ComfyUI, which has its own .venv")
    parser.add_argument("--scale", choices=("full", "small"), default="full")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--memory", nargs="+", choices=MEMORY, default=MEMORY)
    parser.add_argument("--precision", nargs="+", choices=PRECISIONS, default=PRECISIONS[:1])
    parser.add_argument(
        "--low-gb", type=float, default=12.0, help="GiB of the card to use under 'low'"
    )
    parser.add_argument("--out", type=Path, help="JSON file for the report")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    raise SystemExit(main())
