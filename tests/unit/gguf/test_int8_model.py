"""A transformer whose large layers multiply in int8: where its feed goes, and who is left alone."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from comfyui_multitalk.multitalk_core.model import dit
from comfyui_multitalk.multitalk_core.model.audio_tokens import AudioContext
from comfyui_multitalk.multitalk_core.model.dit import MultiTalkModel
from comfyui_multitalk.tests.support.transformer import AUDIO, CONFIG, small_model
from comfyui_multitalk.wan_gguf_loader.int8 import Int8Rows
from comfyui_multitalk.wan_gguf_loader.ops import GGUFLinear, GGUFOps, Precision

LATENT = (4, 32, 32)
"""1024 tokens, the fewest that are rounded."""
ROUNDED = {
    "self_attn.q", "self_attn.k", "self_attn.v", "self_attn.o", "cross_attn.q", "cross_attn.o",
    "audio_cross_attn.q_linear", "audio_cross_attn.proj", "ffn.0", "ffn.2",
}  # fmt: skip
FED = ROUNDED - {"self_attn.o", "cross_attn.o", "audio_cross_attn.proj"}
"""These follow a norm or a GELU, which rounds for them."""


@pytest.fixture(autouse=True)
def without_gradients() -> Iterator[None]:
    with torch.no_grad():
        yield


def model(precision: Precision, *, norm_visual: bool = True) -> MultiTalkModel:
    config = replace(CONFIG, audio=replace(AUDIO, norm_visual=norm_visual))
    made = MultiTalkModel(config, ops=GGUFOps(precision=precision)).eval()
    made.load_state_dict(small_model(config).state_dict())
    return made


def run(net: MultiTalkModel, *, batch: int = 1, speakers: int = 2) -> Tensor:
    generator = torch.Generator().manual_seed(1)

    def draw(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator).bfloat16()

    masks = torch.zeros(3, 16, 16)
    masks[0, :, :6], masks[1, :, 10:], masks[2, :, 6:10] = 1, 1, 1
    windows = draw(speakers, 13, 5, AUDIO.layers, AUDIO.channels)
    velocity: Tensor = net(
        draw(batch, 16, *LATENT),
        torch.full((batch,), 500.0),
        condition=draw(batch, 20, *LATENT),
        text=draw(batch, CONFIG.text_len, CONFIG.text_dim),
        image=draw(batch, 257, CONFIG.image_dim),
        audio=AudioContext(net.project_audio(windows), masks.flatten(1) if speakers == 2 else None),
    )
    return velocity.float()


def distance(a: Tensor, b: Tensor) -> float:
    return float((a - b).norm() / b.norm())


@pytest.mark.parametrize("norm_visual", [True, False])
def test_int8_transformer_stays_near_the_exact_one(norm_visual: bool) -> None:
    ours = run(model("int8", norm_visual=norm_visual), speakers=1)
    exact = run(model("exact", norm_visual=norm_visual), speakers=1)
    assert 0.001 < distance(ours, exact) < 0.03


def test_layers_of_the_video_alone_are_rounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Text, photo, voices and time are not, however many passes a step has."""
    net = model("int8")
    names = {layer: name for name, layer in net.named_modules()}
    seen: dict[str, set[str]] = {"rounded": set(), "fed": set()}
    whole = GGUFLinear.multiply

    def multiply(self: GGUFLinear, x: Any, weight: Any, bias: Any) -> Tensor:
        layer = names[self].split(".", 2)[-1] if names[self].startswith("blocks") else names[self]
        if isinstance(weight, Int8Rows):
            seen["rounded"].add(layer)
        if isinstance(x, Int8Rows):
            seen["fed"].add(layer)
        return whole(self, x, weight, bias)

    monkeypatch.setattr(GGUFLinear, "multiply", multiply)
    run(net, batch=3)
    assert seen == {"rounded": ROUNDED, "fed": FED}


def test_entries_in_turn_are_as_all_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """In turn the rounded weights are held from entry to entry."""
    net = model("int8")
    in_turn = run(net, batch=3)
    monkeypatch.setattr(dit, "entries_at_once", lambda num_tokens: 3)
    assert distance(in_turn, run(net, batch=3)) < 0.005  # bfloat16 sums of other lengths
