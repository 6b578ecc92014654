"""The `multitalk` command: `generate` a video, `inspect` a file, `download` models, `doctor`.

Exit codes: 0 for success, 1 if the doctor found something missing, 2 for an input that cannot be
used (one line on standard error), 130 for Ctrl-C, 143 for SIGTERM. No partial video is left in any
case.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import logging
import signal
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from types import FrameType

import torch
from tqdm import tqdm

from ..multitalk_core.engine import Step
from ..multitalk_core.errors import InputError, MultiTalkError
from ..wan_gguf_loader.errors import GGUFError
from .arguments import build_request, parse
from .doctor import examine
from .download import download, generate_command, list_files, list_sets, targets
from .hub import Hub
from .inspection import inspect_file
from .manifest import model_sets

_BAD_INPUT = 2
_INTERRUPTED = 130
_TERMINATED = 143


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line.

    Args:
        arguments: Without the program's name; `None` means those of the process.

    Returns:
        The exit code.
    """
    logging.basicConfig(format="%(levelname)s: %(message)s", stream=sys.stderr)
    try:
        options = parse(arguments)
        return _COMMANDS[options.command](options)
    except (MultiTalkError, GGUFError) as reason:
        return _fail(str(reason))
    except torch.OutOfMemoryError:
        return _fail(
            "The card has too little memory. Use --offload auto, a smaller --size or fewer "
            "--segment-frames."
        )
    except KeyboardInterrupt:
        sys.stderr.write("multitalk: interrupted; no video was written\n")
        return _INTERRUPTED


def _generate(options: argparse.Namespace) -> int:
    from .run import run  # takes seconds to import, which `inspect` and `--help` need not wait for

    request = build_request(options)
    with _unwinding(), tqdm(unit="step", disable=options.quiet, dynamic_ncols=True) as bar:

        def advance(step: Step) -> None:
            bar.total = step.num_segments * step.num_steps
            bar.set_description(f"segment {step.segment + 1}/{step.num_segments}", refresh=False)
            bar.update(step.segment * step.num_steps + step.step + 1 - bar.n)

        summary = run(request, on_step=advance)
    if options.json:
        sys.stdout.write(json.dumps(dataclasses.asdict(summary)) + "\n")
    else:
        made = (
            f"{summary.output}: {summary.frames} frames, {summary.seconds:.2f} s, "
            f"{summary.width}x{summary.height}, seed {summary.seed}"
        )
        sys.stdout.write("\n".join([made, *summary.loras]) + "\n")
    return 0


@contextmanager
def _unwinding() -> Iterator[None]:
    """Turn SIGTERM into an exception, so that every `with` block removes its files."""
    if threading.current_thread() is not threading.main_thread():
        yield  # signals reach only the main thread
        return
    before = signal.signal(signal.SIGTERM, _terminate)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _terminate(number: int, frame: FrameType | None) -> None:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # a second one would interrupt the cleanup
    sys.stderr.write("\nmultitalk: terminated; no video was written\n")
    raise SystemExit(_TERMINATED)


def _inspect(options: argparse.Namespace) -> int:
    inspection = inspect_file(options.file)
    if options.json:
        sys.stdout.write(json.dumps(dataclasses.asdict(inspection)) + "\n")
    else:
        sys.stdout.write(inspection.lines())
    return 0


def _download(options: argparse.Namespace) -> int:
    sets = model_sets()
    if options.list:
        lines = list_files(sets[options.set]) if options.set else list_sets(sets)
        sys.stdout.writelines(f"{line}\n" for line in lines)
        return 0
    if options.set is None:
        raise InputError(f"Name a set: {', '.join(sets)}. See `multitalk download --list`.")
    models = sets[options.set]
    places = targets(models, to=options.to, comfyui=options.comfyui)
    try:
        download(places, hub=Hub(), say=_say)
    except KeyboardInterrupt:
        sys.stderr.write("multitalk: interrupted; the same command goes on from here\n")
        return _INTERRUPTED
    _say(f"Use it:\n{generate_command(models, places)}")
    return 0


def _doctor(options: argparse.Namespace) -> int:
    findings = list(examine(options.files, models=options.models))
    sys.stdout.writelines(f"{finding.line()}\n" for finding in findings)
    return int(any(finding.is_bad for finding in findings))


def _say(line: str) -> None:
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


def _fail(message: str) -> int:
    sys.stderr.write(f"multitalk: error: {' '.join(message.split())}\n")
    return _BAD_INPUT


_COMMANDS = {
    "generate": _generate,
    "inspect": _inspect,
    "download": _download,
    "doctor": _doctor,
}

if __name__ == "__main__":
    sys.exit(main())
