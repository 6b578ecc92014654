"""Attention and the reference map."""

from __future__ import annotations

import weakref
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from comfyui_multitalk.multitalk_core.config import AudioConfig, ModelConfig
from comfyui_multitalk.multitalk_core.geometry import GridSize
from comfyui_multitalk.multitalk_core.model import attention
from comfyui_multitalk.multitalk_core.model.layers import TorchOps
from comfyui_multitalk.multitalk_core.model.lrope import grid_rotation
from comfyui_multitalk.tests.support.transformer import draw_weights

MASKS = torch.tensor([[1, 0, 0, 1, 0, 0], [0, 0, 1, 0, 0, 1], [0, 1, 0, 0, 1, 0]])


def _heads(batch: int = 2, heads: int = 5) -> torch.Tensor:
    return torch.randn(2, batch, 18, heads, 8, generator=torch.Generator().manual_seed(0))


def _plain_map(q: torch.Tensor, k: torch.Tensor, masks: torch.Tensor) -> torch.Tensor:
    scores = torch.einsum("bnad,bkad->bank", q, k[:, : masks.shape[1]]) / q.shape[-1] ** 0.5
    mean = scores.softmax(-1).mean(1)
    regions = [mean[..., mask.bool()].mean(-1) for mask in masks]
    return torch.stack(regions, dim=1)


def test_reference_map_is_the_mean_attention_to_each_region_over_all_heads() -> None:
    q, k = _heads()
    looks = attention.reference_map(q, k, token_masks=MASKS)
    torch.testing.assert_close(looks, _plain_map(q, k, MASKS), atol=1e-6, rtol=0)


def test_reference_map_empty_background_wins_no_token() -> None:
    q, k = _heads()
    masks = MASKS.clone()
    masks[0] += masks[2]
    masks[2] = 0
    looks = attention.reference_map(q, k, token_masks=masks)
    assert looks.isfinite().all()
    assert (looks.argmax(1) != 2).all()


def test_reference_map_never_holds_all_scores() -> None:
    class Largest(TorchDispatchMode):
        nbytes = 0

        def __torch_dispatch__(
            self, func: Any, types: Any, args: Any = (), kwargs: Any = None
        ) -> Any:
            result = func(*args, **(kwargs or {}))
            if isinstance(result, torch.Tensor):
                Largest.nbytes = max(Largest.nbytes, result.numel() * result.element_size())
            return result

    q = torch.randn(1, 2048, 4, 16, generator=torch.Generator().manual_seed(0))
    with Largest():
        looks = attention.reference_map(q, q, token_masks=torch.ones(3, 512))
    assert looks.shape == (1, 3, 2048)
    assert 0 < Largest.nbytes <= 2 * q.nbytes  # all scores would be 32 times as much


@torch.no_grad()
def test_normed_tokens_are_gone_before_the_attention() -> None:
    """Nobody holds them longer than the layers that take them: 0.3 GB at 14B."""
    config = ModelConfig(dim=16, num_heads=2)
    x = torch.randn(1, 12, 16)
    normed: list[weakref.ref[Tensor]] = []
    alive: list[bool] = []

    def norm(tokens: Tensor) -> Tensor:
        made = 2 * tokens
        normed.append(weakref.ref(made))
        return made

    def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        alive.append(normed[-1]() is not None)
        return attention.attend(q, k, v)

    attends = attention.Attends(video=attend, text=attend, image=attend, audio=attend)
    turned = grid_rotation(GridSize(3, 2, 2), head_dim=8, device=x.device)
    attention.SelfAttention(config, ops=TorchOps)(x, norm=norm, rotation=turned, attend=attend)
    attention.CrossAttention(config, ops=TorchOps)(
        x, torch.randn(1, attention.IMAGE_TOKENS + 4, 16), norm=norm, attends=attends
    )
    attention.AudioAttention(config, AudioConfig(token_dim=6), ops=TorchOps)(
        x, torch.randn(1, 3, 4, 6), norm=norm, attend=attend
    )
    assert alive == [False] * 4


def test_audio_attention_hears_its_own_frame_only() -> None:
    config = ModelConfig(dim=16, num_heads=2)
    module = draw_weights(attention.AudioAttention(config, AudioConfig(token_dim=6), ops=TorchOps))
    generator = torch.Generator().manual_seed(0)
    x, audio = (
        torch.randn(1, 12, 16, generator=generator),
        torch.randn(1, 3, 4, 6, generator=generator),
    )
    changed = audio.clone()
    changed[:, 1] += 1
    labels = torch.linspace(0, 24, 12)[None]
    for given in (None, labels):
        first, second = (
            module(x, heard, norm=nn.Identity(), labels=given) for heard in (audio, changed)
        )
        difference = first - second
        per_frame = difference.view(3, 4, 16).abs().amax(dim=(1, 2))
        assert (per_frame > 1e-4).tolist() == [False, True, False]


def test_audio_attention_shared_audio_equals_repeated_audio() -> None:
    config = ModelConfig(dim=16, num_heads=2)
    module = draw_weights(attention.AudioAttention(config, AudioConfig(token_dim=6), ops=TorchOps))
    generator = torch.Generator().manual_seed(0)
    x, audio = torch.randn(2, 12, 16, generator=generator), torch.randn(1, 3, 4, 6)
    shared, repeated = (
        module(x, heard, norm=nn.Identity()) for heard in (audio, audio.repeat(2, 1, 1, 1))
    )
    torch.testing.assert_close(shared, repeated, atol=1e-6, rtol=0)


def test_rms_norm_half_precision_normalises_in_float32() -> None:
    norm = attention.RMSNorm(8, eps=1e-6)
    x = torch.full((1, 8), 3e4, dtype=torch.float16)  # squares overflow float16
    torch.testing.assert_close(norm(x), torch.ones_like(x))
