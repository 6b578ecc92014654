"""Training the transformer: the loss is the sampler's, the base stays, voices are learned."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from comfyui_multitalk.dev.tiny.wan import TRAINED, is_audio
from comfyui_multitalk.dev.train_tiny import export, rounding, talker
from comfyui_multitalk.dev.train_tiny.context import repeat_padding
from comfyui_multitalk.dev.train_tiny.dataset import Batch
from comfyui_multitalk.dev.train_tiny.voices import (
    TEST_VOICES,
    TRAIN_VOICES,
    load_voices,
    save_voices,
)
from comfyui_multitalk.multitalk_core.config import AudioConfig
from comfyui_multitalk.multitalk_core.method.schedule import clean_estimate
from comfyui_multitalk.multitalk_core.model.dit import MultiTalkModel
from comfyui_multitalk.tools.convert import choose_type
from comfyui_multitalk.wan_gguf_loader.files import open_weights

SMALL = replace(
    TRAINED,
    dim=64,
    ffn_dim=64,
    num_layers=2,
    num_heads=2,
    text_dim=8,
    image_dim=8,
    audio=AudioConfig(layers=2, channels=3, hidden_dim=16, num_tokens=2, token_dim=16),
)
TEXT_LEN = 8


def _batch(*, count: int = 4, speakers: int = 1, seed: int = 0) -> Batch:
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator)

    text = draw(count, TEXT_LEN, 8)
    text[:, 5:] = 0
    masks = torch.zeros(count, 3, 6, dtype=torch.bool)
    masks[:, 0, :2], masks[:, 1, 4:], masks[:, 2, 2:4] = True, True, True
    return Batch(
        latents=draw(count, 16, 2, 4, 6),
        condition=draw(count, 20, 2, 4, 6),
        held=torch.zeros(count, 1, 2, 1, 1),
        image=draw(count, 257, 8),
        text=text,
        windows=draw(count, speakers, 5, 5, 2, 3),
        masks=masks,
        mouths=torch.ones(count, 1, 1, 4, 6),
    )


def _draw(batch: Batch, *, seed: int = 1) -> talker.Draw:
    return talker.draw_noise(batch.latents, generator=torch.Generator().manual_seed(seed))


def _model(*, drawn: bool = False) -> MultiTalkModel:
    torch.manual_seed(0)
    model = talker.build(SMALL, text_len=TEXT_LEN)
    if drawn:
        for parameter in model.parameters():
            nn.init.normal_(parameter, std=parameter.shape[-1] ** -0.5)
    return model


class _Oracle(nn.Module):
    """Knows the clean latents and points at them from wherever it is asked."""

    def __init__(self, clean: Tensor) -> None:
        super().__init__()
        self.config = replace(SMALL, text_len=TEXT_LEN)
        self._clean = clean

    def forward(self, latents: Tensor, timestep: Tensor, **_others: Any) -> Tensor:
        return (latents - self._clean) / (timestep / 1000).view(-1, 1, 1, 1, 1)


def test_loss_is_none_for_the_velocity_that_the_sampler_needs() -> None:
    """The sampler's `clean_estimate` of the trained velocity is the clip itself."""
    batch = _batch()
    draw = _draw(batch)
    loss, mouths = talker.loss_of(_Oracle(batch.latents), batch, draw, silence=None)
    assert float(loss) < 1e-8 and float(mouths) < 1e-8
    level = float(draw.level[0])
    noisy = torch.lerp(batch.latents[:1], draw.noise[:1], level)
    velocity = draw.noise[:1] - batch.latents[:1]
    clean = clean_estimate(noisy, velocity, now=1000 * level)
    assert torch.allclose(clean, batch.latents[:1], atol=1e-5)


def test_loss_leaves_out_what_the_sampler_holds() -> None:
    batch = _batch()
    held = batch.held.clone()
    held[:, :, 0] = 1
    draw = _draw(batch)
    wrong = batch.latents.clone()
    wrong[:, :, 0] += 1
    oracle = _Oracle(wrong)
    assert float(talker.loss_of(oracle, batch, draw, silence=None)[0]) > 0.1
    free = talker.loss_of(oracle, batch._replace(held=held), draw, silence=None)[0]
    assert float(free) < 1e-8


def test_levels_lean_to_the_noisy_end() -> None:
    level = talker.draw_noise(
        torch.empty(4000, 1), generator=torch.Generator().manual_seed(0)
    ).level
    assert float(level.min()) > 0 and float(level.max()) < 1
    assert float(level.median()) == pytest.approx(0.75, abs=0.02)  # a half, shifted by 3


def test_repeated_padding_is_a_prompt_of_512_rows() -> None:
    model = _model(drawn=True).requires_grad_(False)
    whole = MultiTalkModel(SMALL).requires_grad_(False)
    whole.load_state_dict(model.state_dict())
    batch = _batch()
    given = {"condition": batch.condition, "text": batch.text, "image": batch.image}
    expected = whole(batch.latents, torch.full((4,), 500.0), **given)
    hooks = repeat_padding(times=SMALL.text_len - TEXT_LEN + 1)
    found = model(batch.latents, torch.full((4,), 500.0), hooks=hooks, **given)
    assert float((found - expected).norm() / expected.norm()) < 1e-5
    short = model(batch.latents, torch.full((4,), 500.0), **given)
    assert float((short - expected).norm() / expected.norm()) > 1e-4


@pytest.mark.parametrize("speakers", [1, 2])
def test_audio_tokens_of_a_batch_are_those_of_use(speakers: int) -> None:
    model = _model(drawn=True).requires_grad_(False)
    windows = _batch(speakers=speakers).windows
    tokens = talker.audio_tokens(model, windows, silence=False)
    for i_clip in range(len(windows)):
        alone = model.project_audio(windows[i_clip])
        assert torch.allclose(tokens[i_clip : i_clip + 1], alone, atol=1e-6)
    silent = talker.audio_tokens(model, windows, silence=True)
    assert torch.allclose(silent[:1], model.project_audio(torch.zeros_like(windows[0, -1:])))


def test_new_adapter_changes_nothing() -> None:
    batch = _batch(speakers=2)
    model = _model(drawn=True)
    for name, parameter in model.named_parameters():
        if name.endswith(("audio_cross_attn.proj.weight", "proj.bias")):
            nn.init.zeros_(parameter)
    fresh = talker.build(SMALL, text_len=TEXT_LEN)
    assert all(not bool(block.audio_cross_attn.proj.weight.any()) for block in fresh.blocks)
    with torch.no_grad():
        losses = [talker.loss_of(model, batch, _draw(batch), silence=s)[0] for s in (None, False)]
    assert float(losses[0]) == pytest.approx(float(losses[1]))


class _OneBatch:
    """A cache with one batch for each number of people."""

    text_len = TEXT_LEN

    def draw(self, count: int, *, people: int, **_others: Any) -> Batch:
        return _batch(count=count, speakers=people)


def test_adapter_learns_and_the_base_stays() -> None:
    model = _model(drawn=True)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(is_audio(name))
    before = {name: value.clone() for name, value in model.state_dict().items()}
    plan = talker.Plan(minutes=1, steps=30, first_step=0, batch=4, learning_rate=1e-2, ema=0.5)
    average = talker.train(model, _OneBatch(), plan, device=torch.device("cpu"))
    after = model.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before if not is_audio(name))
    assert {name for name in before if is_audio(name)} == set(average.weights)
    assert average.num_steps == 30
    batch, draw = _batch(), _draw(_batch())
    losses = []
    for weights in (before, {**before, **average.weights}):
        model.load_state_dict(weights)
        with torch.no_grad():
            losses.append(float(talker.loss_of(model, batch, draw, silence=False)[0]))
    assert losses[1] < 0.97 * losses[0]


def test_rounded_weights_are_those_of_the_shipped_file() -> None:
    """What `convert` quantises is rounded, and rounding twice changes nothing."""
    model = MultiTalkModel(replace(TRAINED, num_layers=1, audio=None))
    weights = model.state_dict()
    for name, value in weights.items():
        chosen = choose_type(name, tuple(value.shape), stored="F32", type="Q8_0")
        assert rounding.is_rounded(name, value) == (chosen == "Q8_0"), name
    once = rounding.unpack(rounding.pack(weights))
    twice = rounding.unpack(rounding.pack(once))
    for name, value in weights.items():
        assert torch.equal(once[name], twice[name]), name
        assert float((once[name] - value).norm()) <= 0.01 * float(value.norm()), name


def test_export_writes_what_was_trained(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = talker.build(replace(TRAINED, num_layers=1), text_len=TEXT_LEN)
    weights = dict(model.named_parameters())
    parts = {"base": {}, "adapter": {}}
    for name, value in weights.items():
        nn.init.normal_(value, std=0.1)
        parts["adapter" if is_audio(name) else "base"][name] = value.detach()
    save_file(rounding.pack(parts["base"]), tmp_path / "base.safetensors")
    adapter = {name: value.half() for name, value in parts["adapter"].items()}
    save_file(adapter, tmp_path / "adapter.safetensors")
    (tmp_path / "vae").mkdir()
    for name in ("vae/vae", "wav2vec2_tiny", "umt5_tiny", "clip_vision_tiny"):
        save_file({"x": torch.ones(1)}, tmp_path / f"{name}.safetensors")
    sound = np.linspace(-0.5, 0.5, 16_000 * 30, dtype=np.float32)
    save_voices(tmp_path / "voices.npz", {name: sound for name in (*TEST_VOICES, *TRAIN_VOICES)})
    made = export.export(tmp_path, tmp_path / "models")
    assert sorted(file.name for file in (*made.files, made.voices)) == sorted(
        path.name for path in (tmp_path / "models").rglob("*.*")
    )
    base = open_weights(made.base)
    assert base.num_heads == TRAINED.num_heads
    trained = talker.load_base(tmp_path)
    assert set(base.tensors) == set(trained)
    for name, value in trained.items():
        found = base.dequantize(name, torch.float32)
        assert float((found - value).norm()) <= 1e-3 * float(value.norm()), name
    assert set(open_weights(made.adapter).tensors) == set(adapter)
    voices = load_voices(made.voices)
    assert {name: len(voice) for name, voice in voices.items()} == dict.fromkeys(
        TEST_VOICES, 16_000 * 24
    )
