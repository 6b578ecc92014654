"""Runs inside ComfyUI's Python: measures our MODEL as a citizen, prints one JSON object.

python citizen.py COMFYUI PACK TINY SCRATCH
"""

from __future__ import annotations

import json
import logging
import sys

from scene import Scene

# isort: split
import lora_parts
import memory_parts
import model_parts
import torch


def main() -> None:
    """Measure everything."""
    logging.getLogger().setLevel(logging.WARNING)
    with torch.inference_mode():
        scene = Scene()
        parts = {**model_parts.PARTS, **lora_parts.PARTS, **memory_parts.PARTS}
        result = {name: part(scene) for name, part in parts.items()}
    sys.stdout.write("\n" + json.dumps(result) + "\n")


main()
