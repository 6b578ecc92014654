"""What is kept through a segment: what it gives back, its limit, and that the model asks it."""

from __future__ import annotations

import torch
from torch import Tensor

from comfyui_multitalk.multitalk_core.model.memory import Memory
from comfyui_multitalk.tests.support.transformer import small_inputs, small_model


def test_memory_keeps_by_name_and_place_until_it_is_full() -> None:
    made: list[int] = []

    def make() -> tuple[Tensor]:
        made.append(len(made))
        return (torch.full((4,), float(made[-1])),)  # 16 bytes

    memory = Memory(max_bytes=40)
    here, there, late = memory.at(0), memory.at(1), memory.at(2)
    assert [float(recall("k", make)[0][0]) for recall in (here, there, here, there)] == [0, 1, 0, 1]
    assert [float(late("k", make)[0][0]) for _ in range(2)] == [2, 3]  # no room left
    assert float(here("v", make)[0][0]) == 4


@torch.no_grad()
def test_model_with_memory_projects_text_photo_and_voices_once() -> None:
    model, inputs = small_model(), small_inputs()
    given = {
        "condition": inputs.condition,
        "text": inputs.text,
        "image": inputs.image,
        "audio": model.project_audio(inputs.windows),
        "token_masks": inputs.token_masks,
    }
    expected = model(inputs.latents, inputs.timestep, **given)
    calls: list[str] = []
    watched = ("cross_attn.k", "cross_attn.v_img", "audio_cross_attn.kv_linear")
    for name, module in model.blocks[0].named_modules():
        if name in watched:
            module.register_forward_hook(lambda *_, name=name: calls.append(name))
    memory = Memory(max_bytes=1 << 30)
    for _ in range(2):
        result = model(inputs.latents, inputs.timestep, **given, memory=memory)
        assert torch.equal(result, expected)
    assert sorted(calls) == sorted(watched)
