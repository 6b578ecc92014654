"""A plan is followed; when memory runs out the next one is, once, and the video stays the same.

The meta device stands in for a card where places count, the CPU itself where numbers do.
"""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from comfyui_multitalk.multitalk_core.config import SamplingConfig
from comfyui_multitalk.multitalk_core.engine import Step
from comfyui_multitalk.multitalk_core.errors import MultiTalkError
from comfyui_multitalk.multitalk_core.geometry import Size
from comfyui_multitalk.multitalk_core.inputs.scene import Scene, Text, compose
from comfyui_multitalk.multitalk_core.inputs.speech import Speech
from comfyui_multitalk.multitalk_core.model.attention import PLAIN
from comfyui_multitalk.multitalk_core.model.dit import MultiTalkModel
from comfyui_multitalk.standalone.memory import RESIDENT, STREAMED, TILED, Plan
from comfyui_multitalk.standalone.placement import PlacedEngine
from comfyui_multitalk.standalone.vae import WanVAE, load_vae
from comfyui_multitalk.tests.support.stand_ins import MeanImageEncoder, MeanVAE
from comfyui_multitalk.tests.support.transformer import AUDIO, CONFIG, small_model
from comfyui_multitalk.wan_gguf_loader.files import open_weights

CPU, CARD = torch.device("cpu"), torch.device("meta")
NUM_STEPS = 3


class TilingVAE(MeanVAE):
    """Notes whether it was told to work in tiles, and whether it may choose so."""

    tiled = False
    may_tile = False

    def use_tiles(self) -> None:
        """Work in tiles from now on."""
        self.tiled = True


def _place(
    model: MultiTalkModel, plan: Plan, *, device: torch.device = CPU, may_change: bool = True
) -> PlacedEngine:
    return PlacedEngine(
        model,
        TilingVAE(),
        MeanImageEncoder(CONFIG.image_dim),
        device=device,
        dtype=torch.float32,
        plan=plan,
        may_change=may_change,
        attends=PLAIN,
    )


def _draw(*shape: int, seed: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def _video(engine: PlacedEngine, on_step: Callable[[Step], None] | None = None) -> Tensor:
    """Make two segments; the second draws noise for its motion frames before and in each step."""
    text = Text(_draw(1, 4, CONFIG.text_dim, seed=2), _draw(1, 4, CONFIG.text_dim, seed=3))
    photo = torch.full((40, 60, 3), 90, dtype=torch.uint8)
    features = _draw(14, AUDIO.layers, AUDIO.channels, seed=1)
    scene = Scene(
        picture=compose(photo, [None], size=Size(32, 48)),
        speech=Speech(features=(features,), num_frames=12),
        text_at=lambda _: text,
    )
    config = SamplingConfig(steps=NUM_STEPS, segment_frames=9, motion_frames=5, color_match=0.0)
    parts = engine.segments(scene, config, seed=4, on_step=on_step)
    return torch.cat([part.frames for part in parts], dim=1)


def _exhaust(owner: Any, name: str, *calls: int) -> None:
    """Let a method run out of memory at these calls, counted from 0."""
    method, count = getattr(owner, name), iter(range(1_000_000))

    def limited(*args: Any, **kwargs: Any) -> Any:
        if next(count) in calls:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return method(*args, **kwargs)

    setattr(owner, name, limited)


def _streams(model: MultiTalkModel) -> bool:
    return bool(model.blocks[0]._forward_pre_hooks)


@pytest.mark.parametrize(
    ("plan", "on_card", "tiled"),
    [(RESIDENT, True, False), (STREAMED, False, False), (TILED, False, True)],
    ids=["resident", "streamed", "tiled"],
)
def test_placement_follows_its_plan(
    plan: Plan, on_card: bool, tiled: bool, caplog: pytest.LogCaptureFixture
) -> None:
    model = small_model()
    with caplog.at_level(logging.INFO):
        placement = _place(model, plan, device=CARD)
    assert {tensor.is_meta for tensor in model.blocks.parameters()} == {on_card}
    assert model.head.modulation.is_meta
    assert placement._vae.tiled is tiled


def test_plans_make_the_same_video() -> None:
    videos = []
    for plan in (RESIDENT, STREAMED):
        model = small_model()
        videos.append(_video(_place(model, plan)))
    assert torch.equal(*videos)


@pytest.mark.parametrize(
    "call",
    [0, 1, NUM_STEPS, NUM_STEPS + 2],
    ids=["first_step", "second_step", "second_segment", "after_motion_noise"],
)
def test_memory_running_out_in_a_step_begins_the_segment_anew_streamed(
    call: int, caplog: pytest.LogCaptureFixture
) -> None:
    model = small_model()
    expected = _video(_place(model, STREAMED))
    model = small_model()
    placement = _place(model, RESIDENT)
    _exhaust(model, "forward", call)
    steps: list[Step] = []
    assert torch.equal(_video(placement, steps.append), expected)
    assert placement.streamed
    assert _streams(model)
    (warning,) = caplog.messages
    assert f"in segment {call // NUM_STEPS + 1}" in warning
    assert STREAMED.words in warning
    assert len(steps) == 2 * NUM_STEPS + call % NUM_STEPS


def test_memory_running_out_inside_a_block_leaves_the_model_whole() -> None:
    model = small_model()
    expected = _video(_place(model, RESIDENT))
    model = small_model()
    placement = _place(model, RESIDENT)
    _exhaust(model.blocks[1].ffn, "forward", 1)
    assert torch.equal(_video(placement), expected)


@pytest.mark.parametrize(
    ("plan", "calls"), [(RESIDENT, (0, 1)), (STREAMED, (0,)), (TILED, (0,))], ids=str
)
def test_memory_running_out_for_good_is_one_sentence(plan: Plan, calls: tuple[int, ...]) -> None:
    model = small_model()
    placement = _place(model, plan)
    _exhaust(model, "forward", *calls)
    with pytest.raises(MultiTalkError, match=r"ran out in segment 1.*--size"):
        _video(placement)


def test_memory_running_out_is_left_alone_unless_the_plan_may_change() -> None:
    model = small_model()
    placement = _place(model, RESIDENT, may_change=False)
    _exhaust(model, "forward", 0)
    with pytest.raises(torch.OutOfMemoryError):
        _video(placement)


@pytest.mark.parametrize("work", ["_encode", "_decode"])
def test_vae_that_runs_out_of_memory_goes_on_in_tiles_where_it_may(
    work: str, repository: Path, caplog: pytest.LogCaptureFixture
) -> None:
    given = _draw(1, 3, 5, 16, 16, seed=5) if work == "_encode" else _draw(1, 16, 2, 2, 2, seed=5)
    expected = getattr(_tiny_vae(repository), work)(given)
    vae = _tiny_vae(repository)
    _exhaust(vae, work, 0, 2, 3)
    with pytest.raises(torch.OutOfMemoryError):
        getattr(vae, work[1:])(given)
    vae.may_tile = True
    torch.testing.assert_close(getattr(vae, work[1:])(given), expected)
    vae.tiled = False
    with pytest.raises(torch.OutOfMemoryError):
        getattr(vae, work[1:])(given)
    assert vae.tiled
    assert "in tiles" in caplog.text


def test_vae_may_tile_once_blocks_are_streamed() -> None:
    assert not _place(small_model(), RESIDENT)._vae.may_tile
    assert _place(small_model(), STREAMED)._vae.may_tile
    assert not _place(small_model(), STREAMED, may_change=False)._vae.may_tile


def _tiny_vae(repository: Path) -> WanVAE:
    with open_weights(repository / "models" / "tiny" / "vae" / "wan_vae_tiny.safetensors") as file:
        return load_vae(file, device=CPU, dtype=torch.float32)


def test_tiles_change_the_picture_a_little(repository: Path) -> None:
    """On the tiny autoencoder that was trained: bounds on what a seam may show."""
    vae = _tiny_vae(repository)
    rows, columns = torch.linspace(0, 9, 416)[:, None], torch.linspace(0, 3, 128)[None]
    waves = torch.stack([(rows * k + columns).sin() * (columns * k).cos() for k in (1, 2, 3)])
    video = waves[None, :, None]
    whole_latents = vae.encode(video)
    whole = vae.decode(whole_latents)
    vae.use_tiles()
    latents, frames = vae.encode(video), vae.decode(whole_latents)
    assert not torch.equal(frames, whole)
    assert (frames - whole).abs().mean() < 1 / 255
    assert (latents - whole_latents).norm() / whole_latents.norm() < 0.02


@pytest.mark.gpu
def test_memory_running_out_on_a_card_frees_what_the_next_plan_needs() -> None:
    """The whole model lies on the card when memory runs out; afterwards only two slots do."""
    if not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")
    device = torch.device("cuda", torch.cuda.current_device())
    model = small_model(dataclasses.replace(CONFIG, dim=768, ffn_dim=3072, num_layers=12))
    placement = _place(model, RESIDENT, device=device)
    resident = torch.cuda.memory_allocated(device)

    def ask_for_too_much(step: Step) -> None:
        if not placement.streamed:
            torch.empty(2**50, dtype=torch.uint8, device=device)

    _video(placement, ask_for_too_much)
    assert placement.streamed
    assert torch.cuda.memory_allocated(device) < 0.4 * resident
