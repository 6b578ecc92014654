"""Checks the nodes' side of the zoo; runs by ComfyUI's Python in ComfyUI's folder.

python -m comfyui_multitalk.dev.zoo.inside FOLDER RESULTS.json [WORDS]
"""

from __future__ import annotations

import json
import logging
import sys
from pathlib import Path


def main() -> None:
    """Start ComfyUI on the CPU without a server, load every variant, and write what came of it."""
    folder, results, *match = sys.argv[1:]
    sys.argv = ["main.py", "--cpu", "--base-directory", folder]
    import comfy.options

    comfy.options.enable_args_parsing()
    import torch

    from .nodes import check
    from .run import check_all
    from .variants import variants

    logging.disable(logging.WARNING)
    rows = [row for row in variants() if "".join(match) in row.title]
    with torch.inference_mode():
        found = check_all(Path(folder), check, rows=rows)
    Path(results).write_text(json.dumps(found), encoding="utf-8")


if __name__ == "__main__":
    main()
