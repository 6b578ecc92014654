"""The estimate against what the models really hold, and the plan that follows from it.

Sizes of the released models on the meta device: every tensor is counted, none is computed.
"""

from __future__ import annotations

import dataclasses
import importlib.util
import logging
from typing import TYPE_CHECKING

import pytest
import torch
from diffusers import AutoencoderKLWan
from torch import Tensor

from comfyui_multitalk.multitalk_core.config import AudioConfig, ModelConfig
from comfyui_multitalk.multitalk_core.errors import InputError
from comfyui_multitalk.multitalk_core.geometry import Size
from comfyui_multitalk.multitalk_core.model.attention import PLAIN, Attends
from comfyui_multitalk.multitalk_core.model.audio_tokens import AudioContext
from comfyui_multitalk.multitalk_core.model.dit import MultiTalkModel
from comfyui_multitalk.multitalk_core.model.hooks import Hooks
from comfyui_multitalk.standalone.memory import (
    PLANS,
    RESIDENT,
    STREAMED,
    TILE_PIXELS,
    TILE_STRIDE,
    TILED,
    Plan,
    Weights,
    Workload,
    choose,
    estimate,
    free_bytes,
)
from comfyui_multitalk.standalone.request import Lora, ModelFiles
from comfyui_multitalk.standalone.weights import OpenFiles
from comfyui_multitalk.tests.support.live_memory import LiveMemory
from comfyui_multitalk.wan_gguf_loader.ops import GGUFOps, Precision

if TYPE_CHECKING:
    from comfyui_multitalk.dev.make_tiny import TinySet

GB = 10**9
META = torch.device("meta")
BF16 = torch.bfloat16

WORK = Workload(
    size=Size(480, 832),
    num_frames=81,
    dim=5120,
    ffn_dim=13824,
    num_passes=3,
    dtype=BF16,
    transformer=Weights(outside=630 * 10**6, blocks=(350 * 10**6,) * 40),
    fused=True,
    vae_width=96,
    vae_bytes=254 * 10**6,
    image_encoder_bytes=1_260 * 10**6,
)
"""14B in Q4_K with a bfloat16 adapter, at 832x480."""


def _empty(*shape: int) -> Tensor:
    return torch.empty(shape, device=META, dtype=BF16)


def _released(
    num_layers: int, *, device: torch.device, precision: Precision = "exact"
) -> MultiTalkModel:
    """Give a model of the released width."""
    config = ModelConfig(num_layers=num_layers, audio=AudioConfig())
    ops = GGUFOps(precision=precision)
    return MultiTalkModel(config, ops=ops, device=device).to(BF16).requires_grad_(False)


@torch.no_grad()
def _step(
    model: MultiTalkModel, passes: int, size: Size, device: torch.device, attends: Attends = PLAIN
) -> None:
    height, width = size.height // 8, size.width // 8

    def zeros(*shape: int) -> Tensor:
        return torch.zeros(shape, device=device, dtype=BF16)

    model(
        zeros(passes, 16, 21, height, width),
        torch.zeros(passes, device=device),
        condition=zeros(passes, 20, 21, height, width),
        text=zeros(passes, 512, 4096),
        image=zeros(passes, 257, 1280),
        audio=AudioContext(zeros(1, 21, 32, 768)),
        hooks=Hooks(attends=attends),
    )


@pytest.mark.parametrize("passes", [1, 3])
@pytest.mark.parametrize("size", [Size(480, 832), Size(256, 256)], ids=["480p", "small"])
@pytest.mark.parametrize("precision", ["exact", "int8"])
def test_sampling_estimate_covers_a_step(passes: int, size: Size, precision: Precision) -> None:
    """Without Triton; attention's own scratch is not seen."""

    def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return torch.empty_like(q)

    attends = Attends(video=attend, text=attend, image=attend, audio=attend)
    model = _released(2, device=META, precision=precision)
    with LiveMemory() as memory:
        _step(model, passes, size, META, attends)
    work = dataclasses.replace(WORK, num_passes=passes, size=size, fused=False)
    kept_and_decoded = 0.6 * GB  # for which such a model has no need
    assert memory.peak < work.sampling_bytes() < 1.15 * memory.peak + kept_and_decoded


@pytest.mark.gpu
@pytest.mark.parametrize("passes", [1, 3])
def test_sampling_estimate_covers_a_step_on_a_card(passes: int) -> None:
    if not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")
    device = torch.device("cuda", torch.cuda.current_device())
    model = _released(1, device=device)
    before = torch.cuda.memory_allocated(device)
    torch.cuda.reset_peak_memory_stats(device)
    _step(model, passes, WORK.size, device)
    peak = torch.cuda.max_memory_allocated(device) - before
    fused = importlib.util.find_spec("triton") is not None
    work = dataclasses.replace(WORK, num_passes=passes, fused=fused)
    assert 0.6 * work.sampling_bytes() < peak < work.sampling_bytes()


@torch.no_grad()
def _vae_peak(*, tiled: bool, frames: int) -> int:
    with META:
        model = AutoencoderKLWan().to(BF16)
    if tiled:
        model.enable_tiling(TILE_PIXELS, TILE_PIXELS, TILE_STRIDE, TILE_STRIDE)
    weights = sum(parameter.nbytes for parameter in model.parameters())
    with LiveMemory() as decoding:
        latents = _empty(1, 16, (frames + 3) // 4, 60, 104)
        model.decode(latents).sample.float()
    with LiveMemory() as encoding:
        video = torch.empty(1, 3, frames, 480, 832, device=META)
        model.encode(video.to(BF16)).latent_dist.mode().float()
    return max(decoding.peak, encoding.peak) + weights


@pytest.mark.parametrize("tiled", [False, True], ids=["whole", "tiled"])
@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_vae_estimate_covers_decoding_and_encoding(tiled: bool) -> None:
    peak = _vae_peak(tiled=tiled, frames=5)
    work = dataclasses.replace(WORK, num_frames=5)
    assert peak < work.vae_bytes_at_work(tiled=tiled) < 1.3 * peak


def test_vae_estimate_is_what_was_measured_on_a_card() -> None:
    assert WORK.vae_bytes_at_work(tiled=False) == pytest.approx(4.8 * GB, rel=0.1)


def test_plans_need_less_and_less() -> None:
    needs = [estimate(plan, WORK) for plan in PLANS]
    assert needs == sorted(needs, reverse=True)
    assert needs[0] - needs[1] == 38 * 350 * 10**6


@pytest.mark.parametrize("plan", PLANS, ids=lambda plan: plan.words)
def test_choose_takes_the_first_plan_that_fits(
    plan: Plan, caplog: pytest.LogCaptureFixture
) -> None:
    work = dataclasses.replace(WORK, num_passes=1, dim=1024, ffn_dim=4096)
    with caplog.at_level(logging.INFO):
        assert choose(work, free=estimate(plan, work)) == plan
    (line,) = caplog.messages
    assert plan.words in line
    assert f"{estimate(plan, work) / GB:.1f} GB" in line


def test_choose_says_what_is_missing_when_nothing_fits() -> None:
    needed = estimate(TILED, WORK)
    with pytest.raises(InputError) as caught:
        choose(WORK, free=needed - 10**8)
    said = str(caught.value)
    for part in (f"{needed / GB:.1f} GB", f"{(needed - 10**8) / GB:.1f} GB", "832x480"):
        assert part in said
    assert "smaller --size or fewer --segment-frames" in said


@pytest.mark.parametrize(
    "change",
    [{"size": Size(720, 1280)}, {"num_frames": 121}, {"num_passes": 4}, {"dtype": torch.float32}],
    ids=["size", "frames", "passes", "dtype"],
)
def test_estimate_grows_with_the_work(change: dict[str, object]) -> None:
    work = dataclasses.replace(WORK, **change)
    assert all(estimate(plan, work) >= estimate(plan, WORK) for plan in PLANS)
    assert estimate(TILED, work) > estimate(TILED, WORK)


def test_estimate_without_activations_is_the_weights() -> None:
    weights = Weights(outside=5, blocks=(1, 3, 2))
    assert weights.on_card(RESIDENT) == 11
    assert weights.on_card(STREAMED) == 11
    assert Weights(outside=5, blocks=()).on_card(STREAMED) == 5


def test_free_bytes_of_main_memory_are_not_counted() -> None:
    assert free_bytes(torch.device("cpu")) == float("inf")


@pytest.mark.parametrize("dtype", [torch.float32, BF16], ids=str)
def test_weights_are_counted_before_they_are_loaded(tiny: TinySet, dtype: torch.dtype) -> None:
    files = OpenFiles(
        ModelFiles(
            base=tiny.base, adapter=tiny.adapter, loras=(Lora(tiny.lora, 1.0),),
            wav2vec2=tiny.wav2vec2, vae=tiny.vae, text_encoder=tiny.text_encoder,
            clip_vision=tiny.clip_vision,
        )
    )  # fmt: skip
    counted, model = files.transformer_weights(dtype), files.load_transformer(dtype)

    def held(module: torch.nn.Module) -> int:
        return sum(tensor.nbytes for tensor in (*module.parameters(), *module.buffers()))

    blocks = [held(block) for block in model.blocks]
    assert len(counted.blocks) == len(blocks)
    assert sum(counted.blocks) == pytest.approx(sum(blocks), rel=0.05)
    assert counted.outside == pytest.approx(held(model) - sum(blocks), rel=0.05)
