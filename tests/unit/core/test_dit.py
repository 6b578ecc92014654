"""The transformer's semantics, on a small model with three heads."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from comfyui_multitalk.multitalk_core.errors import InputError
from comfyui_multitalk.multitalk_core.model import dit
from comfyui_multitalk.multitalk_core.model.audio_tokens import AudioContext
from comfyui_multitalk.multitalk_core.model.dit import MultiTalkModel
from comfyui_multitalk.multitalk_core.model.layers import TorchOps
from comfyui_multitalk.tests.support.transformer import CONFIG, Inputs, small_inputs, small_model

MODEL = small_model()


def _run(inputs: Inputs, *, model: MultiTalkModel = MODEL, **changes: Any) -> Tensor:
    given = {
        "condition": inputs.condition,
        "text": inputs.text,
        "image": inputs.image,
        "audio": _audio(inputs),
    } | changes
    latents = given.pop("latents", inputs.latents)
    velocity: Tensor = model(latents, inputs.timestep, **given)
    return velocity


def _audio(inputs: Inputs, **changes: Any) -> AudioContext:
    tokens = MODEL.project_audio(inputs.windows)
    return replace(AudioContext(tokens, inputs.token_masks), **changes)


def _distance(a: Tensor, b: Tensor) -> float:
    return float((a - b).norm() / b.norm())


def test_dit_audio_strength_zero_is_the_base_model() -> None:
    inputs = small_inputs()
    base = small_model(replace(CONFIG, audio=None))
    base.load_state_dict(
        {name: MODEL.state_dict()[name] for name in base.state_dict()}, strict=True
    )
    expected = _run(inputs, model=base, audio=None)
    assert torch.equal(_run(inputs, audio=_audio(inputs, token_masks=None, strength=0.0)), expected)
    assert torch.equal(_run(inputs, audio=None), expected)
    assert _distance(_run(inputs), expected) > 1e-2


def test_dit_audio_strength_scales_the_voices() -> None:
    inputs = small_inputs(speakers=1)
    silent = _run(inputs, audio=None)
    distances = [
        _distance(_run(inputs, audio=_audio(inputs, strength=strength)), silent)
        for strength in (0.1, 0.5, 1.0)
    ]
    assert distances[0] < distances[1] < distances[2]


@pytest.mark.parametrize("speakers", [1, 2])
def test_dit_batch_is_each_alone(speakers: int) -> None:
    inputs = small_inputs(batch=2, speakers=speakers)
    together = _run(inputs)
    for i_item in range(2):
        part = slice(i_item, i_item + 1)
        alone = MODEL(
            inputs.latents[part],
            inputs.timestep[part],
            condition=inputs.condition[part],
            text=inputs.text[part],
            image=inputs.image[part],
            audio=_audio(inputs),
        )
        assert _distance(together[part], alone) < 1e-5


def test_dit_batch_takes_its_own_audio_each() -> None:
    inputs = small_inputs(batch=2)
    audio = MODEL.project_audio(inputs.windows)
    other = MODEL.project_audio(inputs.windows.flip(0))
    together = _run(inputs, audio=_audio(inputs, tokens=torch.cat((audio, other))))
    alone = _run(inputs, audio=_audio(inputs, tokens=other))
    assert _distance(together[:1], _run(inputs)[:1]) < 1e-5
    assert _distance(together[1:], alone[1:]) < 1e-5
    assert _distance(together[1:], _run(inputs)[1:]) > 1e-3


def test_dit_batch_takes_its_own_masks_each() -> None:
    inputs = small_inputs(batch=2)
    masks = torch.stack((inputs.token_masks, inputs.token_masks[[1, 0, 2]]))
    together = _run(inputs, audio=_audio(inputs, token_masks=masks))
    for i_item in range(2):
        alone = _run(inputs, audio=_audio(inputs, token_masks=masks[i_item]))
        assert _distance(together[i_item], alone[i_item]) < 1e-5
    assert _distance(alone, together) > 1e-3


def test_dit_one_speaker_masks_change_nothing() -> None:
    inputs = small_inputs(speakers=1)
    expected = _run(inputs, audio=_audio(inputs, token_masks=None))
    assert torch.equal(_run(inputs, audio=_audio(inputs, token_masks=torch.ones(2, 6))), expected)


def test_dit_two_speakers_masks_decide() -> None:
    inputs = small_inputs()
    swapped = inputs.token_masks[[1, 0, 2]]
    assert _distance(_run(inputs, audio=_audio(inputs, token_masks=swapped)), _run(inputs)) > 1e-3


def test_dit_null_audio_of_one_stream_needs_no_masks() -> None:
    inputs = small_inputs()
    null = MODEL.project_audio(torch.zeros_like(inputs.windows[-1:]))
    assert _run(inputs, audio=AudioContext(null)).isfinite().all()


def test_dit_masks_of_bool_equal_masks_of_float() -> None:
    inputs = small_inputs()
    expected = _run(inputs, audio=_audio(inputs, token_masks=inputs.token_masks.float()))
    assert torch.equal(
        _run(inputs, audio=_audio(inputs, token_masks=inputs.token_masks.bool())), expected
    )


def test_dit_short_text_equals_zero_padded_text() -> None:
    inputs = small_inputs()
    padded = torch.cat((inputs.text, torch.zeros(1, 2, CONFIG.text_dim)), dim=1)
    assert torch.equal(_run(inputs, text=padded), _run(inputs))


def test_dit_inputs_stay_unchanged() -> None:
    inputs = small_inputs()
    before = [x.clone() for x in inputs]
    _run(inputs)
    assert all(torch.equal(a, b) for a, b in zip(inputs, before, strict=True))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_dit_computes_in_the_dtype_of_the_latents(dtype: torch.dtype) -> None:
    inputs, seen = small_inputs(), []
    hook = MODEL.blocks[0].register_forward_hook(lambda *a: seen.append(a[-1].dtype))
    velocity = _run(inputs, latents=inputs.latents.to(dtype))
    hook.remove()
    assert velocity.dtype == dtype
    assert seen == [dtype]
    assert _distance(velocity.float(), _run(inputs)) < 0.03


@torch.no_grad()
def test_dit_of_many_blocks_is_nearer_to_float32_for_the_rest_of_its_tokens(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model, inputs = small_model(replace(CONFIG, num_layers=24)), small_inputs(speakers=1)
    exact = _run(inputs, model=model)
    half = inputs.latents.bfloat16()
    kept = _distance(_run(inputs, model=model, latents=half).float(), exact)
    monkeypatch.setattr(dit, "empty_residual", lambda x: None)
    assert kept < 0.6 * _distance(_run(inputs, model=model, latents=half).float(), exact)


def test_dit_every_linear_layer_is_made_by_ops() -> None:
    made = []

    class Counting(TorchOps):
        @staticmethod
        def Linear(*args: Any, **kwargs: Any) -> nn.Linear:  # noqa: N802
            made.append(nn.Linear(*args, **kwargs))
            return made[-1]

    model = MultiTalkModel(CONFIG, ops=Counting, device="meta")
    linear = [m for m in model.modules() if isinstance(m, nn.Linear)]
    assert len(linear) == len(made) == 8 + 4 + 2 * (4 + 6 + 3 + 2)
    assert {p.device.type for p in model.parameters()} == {"meta"}


def test_dit_trains_every_weight() -> None:
    model = MultiTalkModel(CONFIG, differentiable=True)
    model.load_state_dict(MODEL.state_dict())
    inputs = small_inputs()
    audio = AudioContext(model.project_audio(inputs.windows), inputs.token_masks)
    velocity = model(
        inputs.latents,
        inputs.timestep,
        condition=inputs.condition,
        text=inputs.text,
        image=inputs.image,
        audio=audio,
    )
    velocity.square().mean().backward()
    still = [n for n, p in model.named_parameters() if p.grad is None or not p.grad.abs().sum()]
    assert still == []


def _changed(**changes: Any) -> dict[str, Any]:
    return {"audio": _audio(small_inputs(), **changes)}


BAD = {
    "odd-latents": ({"latents": torch.zeros(1, 16, 3, 4, 5)}, "multiples of 16 pixels"),
    "long-prompt": ({"text": torch.zeros(1, 8, 20)}, "8 tokens.* at most 7"),
    "clip-tokens": ({"image": torch.zeros(1, 50, 24)}, "50 CLIP tokens"),
    "no-masks": (_changed(token_masks=None), "Two speakers need token masks.*got none"),
    "masks-shape": (_changed(token_masks=torch.ones(3, 5)), r"got shape \(3, 5\)"),
    "three-speakers": (_changed(tokens=torch.zeros(1, 3, 9, 10)), "3 speakers.*at most 2"),
    "no-speaker": (
        _changed(tokens=torch.zeros(1, 3, 0, 10)),
        "has 0 audio tokens but needs 3 for each",
    ),
    "audio-length": (_changed(tokens=torch.zeros(1, 4, 3, 10)), "4 latent frames.*has 3"),
}


@pytest.mark.parametrize(("changes", "message"), BAD.values(), ids=BAD)
def test_dit_input_that_does_not_fit_is_named(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        _run(small_inputs(), **changes)


def test_dit_base_model_refuses_audio() -> None:
    base = small_model(replace(CONFIG, audio=None))
    with pytest.raises(InputError, match="no audio layers"):
        _run(small_inputs(), model=base)
    with pytest.raises(InputError, match="no audio layers"):
        base.project_audio(torch.zeros(1, 9, 5, 2, 8))


@torch.no_grad()
@pytest.mark.parametrize("speakers", [1, 2])
def test_dit_entries_in_turn_are_the_batch_at_once(
    monkeypatch: pytest.MonkeyPatch, speakers: int
) -> None:
    inputs = small_inputs(batch=3, speakers=speakers)
    expected = _run(inputs)
    rows: list[int] = []
    hook = (
        MODEL.blocks[0]
        .ffn[0]
        .register_forward_pre_hook(lambda _, args: rows.append(args[0].shape[0]))
    )
    monkeypatch.setattr(dit, "entries_at_once", lambda num_tokens: 1)
    result = _run(inputs)
    hook.remove()
    assert rows == [1, 1, 1]
    assert _distance(result, expected) < 1e-6


@torch.no_grad()
def test_dit_entries_with_other_numbers_of_speakers_hear_their_own() -> None:
    inputs = small_inputs(batch=2, speakers=2)
    two = _audio(inputs)
    one = AudioContext(MODEL.project_audio(inputs.windows[:1]))
    together = _run(inputs, audio=[two, one])
    assert _distance(together[:1], _run(inputs, audio=two)[:1]) < 1e-6
    assert _distance(together[1:], _run(inputs, audio=one)[1:]) < 1e-6
