"""Times the parts of one run of the `multitalk` command: `timed_run OUT.json generate ...`.

The command is not changed: torch's hooks for all modules note when a model begins and ends. On a
card each note waits for the work before it.
"""

from __future__ import annotations

import contextlib
import dataclasses
import io
import json
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn.modules import module as torch_module

from ...standalone.cli import main as multitalk

_PARTS = {
    "MultiTalkModel": "transformer",
    "WanEncoder3d": "vae_encode",  # one call per latent frame
    "WanDecoder3d": "vae_decode",
    "CLIPVisionModel": "clip_vision",
    "UMT5EncoderModel": "text_encoder",
}
"""Classes to what they are called in the report."""


@dataclasses.dataclass
class Part:
    """Calls of one model.

    Attributes:
        seconds: Of each call.
        span_seconds: From the start of the first call to the end of the last.
        peak_bytes: Highest memory of the card until the end of the last call, all parts.
    """

    seconds: list[float] = dataclasses.field(default_factory=list)
    span_seconds: float = 0.0
    peak_bytes: int = 0
    first_start: float = dataclasses.field(default=0.0, repr=False)
    start: float = dataclasses.field(default=0.0, repr=False)


@contextlib.contextmanager
def timed_parts() -> Iterator[dict[str, Part]]:
    """Time the models of `_PARTS` while the block runs."""
    parts: dict[str, Part] = {}

    def begin(model: nn.Module, _inputs: Any) -> None:
        if name := _PARTS.get(type(model).__name__):
            part = parts.setdefault(name, Part())
            part.start = _now()
            part.first_start = part.first_start or part.start

    def end(model: nn.Module, _inputs: Any, _output: Any) -> None:
        if name := _PARTS.get(type(model).__name__):
            part = parts[name]
            stop = _now()
            part.seconds.append(stop - part.start)
            part.span_seconds = stop - part.first_start
            if torch.cuda.is_available():
                part.peak_bytes = torch.cuda.max_memory_allocated()

    before = torch_module.register_module_forward_pre_hook(begin)
    after = torch_module.register_module_forward_hook(end)
    try:
        yield parts
    finally:
        before.remove()
        after.remove()


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command, write its report to the first argument, return its exit code."""
    out, *command = sys.argv[1:] if arguments is None else arguments
    said = io.StringIO()
    began = time.perf_counter()
    with timed_parts() as parts, contextlib.redirect_stdout(said):
        code = multitalk([*command, "--json"])
    total = time.perf_counter() - began
    if code == 0:
        report = {
            "summary": json.loads(said.getvalue()),
            "total_seconds": total,
            "parts": {name: _figures(part) for name, part in parts.items()},
            "peak_reserved_bytes": (
                torch.cuda.max_memory_reserved() if torch.cuda.is_available() else None
            ),
        }
        Path(out).write_text(json.dumps(report), encoding="utf-8")
    return code


def _figures(part: Part) -> dict[str, Any]:
    names = ("seconds", "span_seconds", "peak_bytes")
    return {name: getattr(part, name) for name in names}


def _now() -> float:
    if torch.cuda.is_initialized():
        torch.cuda.synchronize()
    return time.perf_counter()


if __name__ == "__main__":
    sys.exit(main())
