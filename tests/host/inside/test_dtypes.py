"""ComfyUI's flags for the diffusion model's dtype decide what our transformer computes in."""

from __future__ import annotations

from pathlib import Path

import comfy.cli_args
import comfy.model_management
import pytest
import torch

from comfyui_multitalk.dev.zoo.variants import variants
from comfyui_multitalk.nodes.host.model import compute_dtype, load_base

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


def test_fp4_base_is_kept_in_the_compute_dtype(card: None, tmp_path: Path) -> None:
    """Fp4 is decoded when it is read; in float32 a base of 14B would take 64 GB."""
    title = "base: `comfy_quant` nvfp4, in a tensor"
    written = next(row for row in variants() if row.title == title).write(tmp_path)
    patcher = load_base(written.path)
    weight = patcher.model.diffusion_model.blocks[0].self_attn.q.weight
    assert weight.dtype == torch.bfloat16
