"""What a host may do inside a forward pass, and that nothing changes where it does nothing."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch
from torch import Tensor

from comfyui_multitalk.multitalk_core.geometry import GridSize
from comfyui_multitalk.multitalk_core.model.attention import Attends, attend
from comfyui_multitalk.multitalk_core.model.audio_tokens import AudioContext
from comfyui_multitalk.multitalk_core.model.backends import torch_attention
from comfyui_multitalk.multitalk_core.model.hooks import NO_HOOKS, BlockCall, Hooks
from comfyui_multitalk.multitalk_core.model.lrope import Placement, grid_rotation
from comfyui_multitalk.tests.support.transformer import CONFIG, small_inputs, small_model

MODEL = small_model()
INPUTS = small_inputs()


def velocity(hooks: Hooks = NO_HOOKS) -> Tensor:
    inputs = INPUTS._asdict()
    windows, masks = inputs.pop("windows"), inputs.pop("token_masks")
    with torch.no_grad():
        audio = AudioContext(MODEL.project_audio(windows), masks)
        result: Tensor = MODEL(**inputs, audio=audio, hooks=hooks)
    return result


def test_hooks_that_only_watch_change_nothing() -> None:
    seen: list[Any] = []

    def watch(site: str) -> Any:
        def run(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            seen.append(site)
            return attend(q, k, v)

        return run

    def around(call: BlockCall) -> Tensor:
        seen.append(call.index)
        return call()

    def after(x: Tensor) -> Tensor:
        seen.append(tuple(x.shape))
        return x

    hooks = Hooks(
        attends=Attends(
            video=watch("video"), text=watch("text"), image=watch("image"), audio=watch("audio")
        ),
        after_context=after,
        around_block=around,
    )
    assert torch.equal(velocity(hooks), velocity())
    tokens = (1, 18, CONFIG.dim)
    order = ["video", "text", "image", tokens, "audio"]
    assert seen == [step for index in range(CONFIG.num_layers) for step in (index, *order)]


def test_around_block_may_leave_a_block_out() -> None:
    skipped = velocity(Hooks(around_block=lambda call: call.x if call.index else call()))
    blocks = MODEL.blocks
    MODEL.blocks = blocks[:1]
    try:
        assert torch.equal(skipped, velocity())
    finally:
        MODEL.blocks = blocks
    assert not torch.equal(skipped, velocity())


def test_after_context_gives_the_tokens_the_voices_are_added_to() -> None:
    assert not torch.equal(velocity(Hooks(after_context=lambda x: x + 1)), velocity())


def test_placement_moves_and_stretches_the_grid() -> None:
    grid, device = GridSize(2, 3, 4), torch.device("cpu")
    wide = grid_rotation(GridSize(5, 9, 13), head_dim=16, device=device)
    placement = Placement(scale=(2.0, 1.0, 3.0), shift=(1.0, 2.0, 0.0))
    moved = grid_rotation(grid, head_dim=16, device=device, placement=placement)
    for table, larger in zip(moved, wide, strict=True):
        expected = larger.view(5, 9, 13, -1)[1:4:2, 2:5, 0:10:3].flatten(0, 2)
        assert torch.equal(table, expected)
    assert not torch.equal(velocity(Hooks(placement=placement)), velocity())


def test_attention_of_a_host_may_keep_what_it_returns() -> None:
    kept: list[tuple[Tensor, Tensor]] = []

    def keep(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        tokens = attend(q, k, v)
        kept.append((tokens, tokens.clone()))
        return tokens

    velocity(Hooks(attends=Attends(video=keep, text=keep, image=keep, audio=keep)))
    assert len(kept) == 4 * CONFIG.num_layers
    assert all(torch.equal(now, before) for now, before in kept)


def test_two_models_in_two_threads_give_what_each_gives_alone() -> None:
    models = [small_model(seed=seed) for seed in (3, 4)]
    scenes = [small_inputs(batch=2, seed=seed) for seed in (5, 6)]
    together = threading.Barrier(2)

    @torch.no_grad()
    def run(index: int, *, alone: bool) -> list[Tensor]:
        model, inputs = models[index], scenes[index]._asdict()
        tokens = model.project_audio(inputs.pop("windows"))
        audio = AudioContext(tokens, inputs.pop("token_masks"))

        def around(call: BlockCall) -> Tensor:
            if not alone:
                together.wait(timeout=60)  # both are inside the same block
            return call()

        hooks = Hooks(attends=Attends(video=torch_attention), around_block=around)
        dtypes = (torch.float32, torch.bfloat16)
        return [
            model(**inputs | {"latents": inputs["latents"].to(dtype)}, audio=audio, hooks=hooks)
            for dtype in dtypes
        ]

    expected = [run(index, alone=True) for index in range(2)]
    with ThreadPoolExecutor(2) as pool:
        found = list(pool.map(lambda index: run(index, alone=False), range(2)))
    for ours, theirs in zip(found, expected, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))
