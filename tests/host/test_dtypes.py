"""ComfyUI's flags for the diffusion model's dtype decide what our transformer computes in."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from comfyui_multitalk.tests.support.comfyui import Installation
    from comfyui_multitalk.tests.support.tiny import TinySet

pytestmark = pytest.mark.host

_SCRIPT = Path(__file__).parent / "inside" / "dtypes.py"


def test_compute_dtype_follows_comfyuis_flags(
    comfyui: Installation, tiny: TinySet, tmp_path: Path
) -> None:
    found = comfyui.run_script(_SCRIPT, str(tiny.folder), str(tmp_path))
    assert found == {
        "cpu": "torch.float32",
        "card": "torch.bfloat16",
        "fp16_unet": "torch.float16",
        "bf16_unet": "torch.bfloat16",
        "fp32_unet": "torch.float32",
        "fp8_e4m3fn_unet": "torch.bfloat16",
        "fp8_e5m2_unet": "torch.bfloat16",
    }
