"""Runs inside ComfyUI's Python: the compute dtype under each flag, as one JSON object.

python dtypes.py COMFYUI PACK TINY SCRATCH
"""

from __future__ import annotations

import json
import sys

import scene  # noqa: F401  (reads the arguments, before anything of ComfyUI)

# isort: split
import comfy.cli_args
import comfy.model_management

from comfyui_multitalk.nodes.host.model import compute_dtype

FLAGS = ("fp16_unet", "bf16_unet", "fp32_unet", "fp8_e4m3fn_unet", "fp8_e5m2_unet")


def main() -> None:
    """Ask on the CPU, then as on a card with bfloat16 and float16."""
    found = {"cpu": str(compute_dtype())}
    for name in ("should_use_bf16", "should_use_fp16"):
        setattr(comfy.model_management, name, lambda *_, **__: True)
    found["card"] = str(compute_dtype())
    for flag in FLAGS:
        setattr(comfy.cli_args.args, flag, True)
        found[flag] = str(compute_dtype())
        setattr(comfy.cli_args.args, flag, False)
    sys.stdout.write("\n" + json.dumps(found) + "\n")


main()
