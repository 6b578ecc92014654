"""A run at 14B sizes: `python -m comfyui_multitalk.dev.benchmarks.smoke_14b --out smoke.json`.

Writes weights of the released sizes with random content (17 GB, into TMPDIR), then makes one
segment of 832x480 and 81 frames in 2 steps of 3 passes with the `multitalk` command: once with a
resident transformer, once with streamed blocks. Reports times and memory, and checks that the video
is complete and its latents and frames are finite. This finds errors of device and dtype; the video
shows noise. `--scale small --device cpu` tries the script itself in seconds.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import math
import platform
import subprocess
import sys
import tempfile
import time
import wave
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import av
import numpy as np
import torch
from PIL import Image

from ...multitalk_core.geometry import Size
from ..make_tiny import TinySet
from .random_weights import full_sizes, small_sizes, write_files

NUM_FRAMES, FPS, STEPS, PASSES = 81, 25, 2, 3
RATE = 16000  # Hz; what the model hears, so that nothing is resampled
PACKAGES = ("torch", "transformers", "diffusers", "safetensors", "gguf", "av", "numpy")
_RUNNER = __package__ + ".timed_run"
_FLAT = 1.0
"""A picture whose 8-bit values spread less than this is one colour."""


class Outcome(NamedTuple):
    """One run: its report, or why it failed."""

    offload: str
    report: dict[str, Any] | None
    failure: str


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; return 1 if a run failed or its video is incomplete."""
    options = _parse(arguments)
    machine = _machine(options)  # a missing package or card is reported before the long work
    full = options.scale == "full"
    sizes = full_sizes() if full else small_sizes()
    video = Size(480, 832) if full else Size(32, 48)
    with tempfile.TemporaryDirectory(prefix="smoke-") as name:
        folder = Path(name)
        began = time.perf_counter()
        files = write_files(folder, sizes, seed=0)
        written = time.perf_counter() - began
        _log(f"{_gigabytes(_size(files)):.1f} GB of weights written in {written:.0f} s")
        outcomes = [
            _run(folder, files, options, video=video, offload=offload)
            for offload in ("none", "blocks")
        ]
        report = {
            "machine": machine,
            "scale": options.scale,
            "video": {"width": video.width, "height": video.height, "frames": NUM_FRAMES},
            "steps": STEPS,
            "passes": PASSES,
            "files_bytes": {p.name: p.stat().st_size for p in files.files if p.exists()},
            "write_seconds": written,
            "runs": [outcome._asdict() for outcome in outcomes],
        }
    if options.out:
        options.out.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    sys.stdout.write(table(report) + "\n")
    return int(any(outcome.report is None for outcome in outcomes))


def table(report: dict[str, Any]) -> str:
    """Give the figures of a report as a Markdown table with a column for each run."""
    runs = [run for run in report["runs"] if run["report"]]
    machine, video = report["machine"], report["video"]
    lines = [
        f"{machine['device']}, {machine['dtype']}; {video['width']}x{video['height']}, "
        f"{video['frames']} frames, {report['steps']} steps of {report['passes']} passes; "
        + ", ".join(f"{name} {version}" for name, version in machine["versions"].items()),
        "",
        "| | " + " | ".join(f"--offload {run['offload']}" for run in runs) + " |",
        "|---|" + "---|" * len(runs),
    ]
    columns = [_rows(run["report"], passes=report["passes"]) for run in runs]
    for label in columns[0] if columns else ():
        lines.append(f"| {label} | " + " | ".join(column[label] for column in columns) + " |")
    failed = [run for run in report["runs"] if not run["report"]]
    lines += [f"\n--offload {run['offload']} failed:\n\n{run['failure']}" for run in failed]
    return "\n".join(lines)


def _rows(report: dict[str, Any], *, passes: int) -> dict[str, str]:
    parts, summary = report["parts"], report["summary"]
    forwards = parts["transformer"]["seconds"]
    first, later = forwards[:passes], forwards[passes:]
    rows = {
        "first forward, s": f"{forwards[0]:.3f}",
        "later forwards, mean s": f"{sum(forwards[1:]) / (len(forwards) - 1):.3f}",
        "first step, s": f"{sum(first):.3f}",
        "second step, s": f"{sum(later):.3f}",
        "VAE encode, s": f"{parts['vae_encode']['span_seconds']:.3f}",
        "VAE decode, s": f"{parts['vae_decode']['span_seconds']:.3f}",
    }
    rows |= {f"{name}, s": f"{seconds:.1f}" for name, seconds in summary["timings"].items()}
    rows["total, s"] = f"{report['total_seconds']:.1f}"
    if report["peak_reserved_bytes"] is None:
        rows["peak memory of the process, GB"] = _peak(summary["peak_memory_bytes"])
    else:
        rows["peak allocated until the last forward, GB"] = _peak(
            parts["transformer"]["peak_bytes"]
        )
        rows["peak allocated, GB"] = _peak(summary["peak_memory_bytes"])
        rows["peak reserved, GB"] = _peak(report["peak_reserved_bytes"])
    rows["blocks streamed"] = "yes" if summary["streamed"] else "no"
    rows["frames, least spread of 8-bit values"] = "{frames}, {least_spread:.1f}".format(
        **report["video"]
    )
    return rows


def _run(
    folder: Path, files: TinySet, options: argparse.Namespace, *, video: Size, offload: str
) -> Outcome:
    _log(f"run with --offload {offload}")
    photo, voice = folder / "photo.png", folder / "voice.wav"
    _draw_photo(photo, video)
    _speak(voice, seconds=NUM_FRAMES / FPS)
    out, result = folder / f"{offload}.mp4", folder / f"{offload}.json"
    command = [
        sys.executable, "-m", _RUNNER, str(result), "generate", "--quiet", "--image", str(photo),
        "--audio", str(voice), "--prompt", "A person is talking.", "--base", str(files.base),
        "--adapter", str(files.adapter), "--wav2vec", str(files.wav2vec2),
        "--vae", str(files.vae), "--text-encoder", str(files.text_encoder),
        "--clip-vision", str(files.clip_vision), "--size", f"{video.width}x{video.height}",
        "--steps", str(STEPS), "--segment-frames", str(NUM_FRAMES), "--offload", offload,
        "--device", options.device, "--dtype", options.dtype, "-o", str(out),
    ]  # fmt: skip
    done = subprocess.run(command, stderr=subprocess.PIPE, text=True, check=False)
    sys.stderr.write(done.stderr)
    if done.returncode:
        return Outcome(offload, None, done.stderr[-4000:])
    report = json.loads(result.read_text(encoding="utf-8"))
    report["video"] = look(out)
    failure = _complaint(report["video"], video)
    return Outcome(offload, None if failure else report, failure)


def look(path: Path) -> dict[str, Any]:
    """Decode a video; `least_spread` is the least standard deviation of a frame's 8-bit values."""
    with av.open(str(path)) as container:
        pictures = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
    height, width = pictures[0].shape[:2]
    spread = min(float(np.std(picture)) for picture in pictures)
    return {"frames": len(pictures), "width": width, "height": height, "least_spread": spread}


def _complaint(seen: dict[str, Any], wanted: Size) -> str:
    """Say what is wrong with a video, or give an empty text."""
    if (seen["frames"], seen["height"], seen["width"]) != (NUM_FRAMES, *wanted):
        return f"The video is not {wanted.width}x{wanted.height} with {NUM_FRAMES} frames: {seen}"
    if seen["least_spread"] < _FLAT:
        return f"A frame of the video is all one colour: {seen}"
    return ""


def _machine(options: argparse.Namespace) -> dict[str, Any]:
    on_card = torch.device(options.device).type == "cuda"
    return {
        "device": torch.cuda.get_device_name() if on_card else platform.machine() + " CPU",
        "dtype": options.dtype,
        "cuda": torch.version.cuda if on_card else None,
        "versions": {"python": platform.python_version()}
        | {name: importlib.metadata.version(name) for name in PACKAGES},
    }


def _draw_photo(path: Path, size: Size) -> None:
    """Draw a picture with large and small shapes."""
    rows, columns = np.mgrid[0 : size.height, 0 : size.width]
    waves = [127 + 100 * np.sin(rows / period + columns / 11) for period in (7, 23, 61)]
    Image.fromarray(np.stack(waves, axis=-1).astype(np.uint8)).save(path)


def _speak(path: Path, *, seconds: float) -> None:
    """Write a tone that swells four times a second, as syllables do."""
    times = np.arange(round(seconds * RATE)) / RATE
    sound = np.sin(2 * math.pi * 180 * times) * (0.3 + 0.2 * np.sin(2 * math.pi * 4 * times))
    with wave.open(str(path), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(RATE)
        file.writeframes((sound * 32767).astype("<i2").tobytes())


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="smoke_14b", description="A run at 14B sizes")
    parser.add_argument("--scale", choices=("full", "small"), default="full")
    parser.add_argument("--device", default="cuda", help="cuda or cpu")
    parser.add_argument("--dtype", choices=("bfloat16", "float32"), default="bfloat16")
    parser.add_argument("--out", type=Path, metavar="FILE.json", help="where to write the figures")
    return parser.parse_args(arguments)


def _size(files: TinySet) -> int:
    return sum(path.stat().st_size for path in files.files if path.exists())


def _gigabytes(count: int) -> float:
    return count / 1e9


def _peak(count: int | None) -> str:
    return "unknown" if count is None else f"{_gigabytes(count):.2f}"


def _log(message: str) -> None:
    sys.stderr.write(f"smoke_14b: {message}\n")


if __name__ == "__main__":
    sys.exit(main())
