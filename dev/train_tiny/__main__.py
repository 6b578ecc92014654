"""Trains the tiny family, one stage a command.

python -m comfyui_multitalk.dev.train_tiny STAGE --out DIR --minutes M [--device cuda] [--resume]
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path

STAGES = {
    "voices": "voices",
    "speech": "speech",
    "features": "features",
    "text": "text",
    "vision": "vision",
    "vae": "vae_training",
    "decoder": "decoder_training",
    "latents": "dataset",
    "base": "talker",
    "adapter": "talker",
    "export": "export",
}
"""The module of each stage, with `add_arguments(parser)` and `run(arguments)`."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one stage; its module is imported only then, for each needs other packages."""
    words = sys.argv[1:] if arguments is None else list(arguments)
    chosen = next((word for word in words if word in STAGES), None)
    parser = argparse.ArgumentParser(prog="train_tiny", description=__doc__)
    stages = parser.add_subparsers(dest="stage", required=True, metavar="STAGE")
    for name, module in STAGES.items():
        stage = stages.add_parser(name)
        stage.add_argument("--out", type=Path, required=True, help="folder of all stages")
        stage.add_argument("--minutes", type=float, default=9.0, help="time for this run")
        stage.add_argument("--device", default="cpu", help="cpu or cuda")
        stage.add_argument("--resume", action="store_true", help="go on from the checkpoint")
        if name == chosen:
            code = import_module(f".{module}", __package__)
            code.add_arguments(stage)
            stage.set_defaults(run=code.run)
    parsed = parser.parse_args(words)
    parsed.out.mkdir(parents=True, exist_ok=True)
    parsed.run(parsed)
    return 0


if __name__ == "__main__":
    sys.exit(main())
