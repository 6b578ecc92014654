"""ComfyUI's flags for the diffusion model's dtype decide what our transformer computes in."""

from __future__ import annotations

import comfy.cli_args
import comfy.model_management
import pytest
import torch

from comfyui_multitalk.nodes.host.model import compute_dtype

FLAGS = {
    "fp16_unet": torch.float16,
    "bf16_unet": torch.bfloat16,
    "fp32_unet": torch.float32,
    "fp8_e4m3fn_unet": torch.bfloat16,
    "fp8_e5m2_unet": torch.bfloat16,
}


@pytest.fixture
def card(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let ComfyUI believe that its device has bfloat16 and float16."""
    for name in ("should_use_bf16", "should_use_fp16"):
        monkeypatch.setattr(comfy.model_management, name, lambda *_, **__: True)


def test_compute_dtype_on_a_cpu_is_float32() -> None:
    assert compute_dtype() == torch.float32


def test_compute_dtype_on_a_card_is_bfloat16(card: None) -> None:
    assert compute_dtype() == torch.bfloat16


@pytest.mark.parametrize("flag", FLAGS)
def test_compute_dtype_follows_the_flag(
    flag: str, card: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(comfy.cli_args.args, flag, True)
    assert compute_dtype() == FLAGS[flag]
