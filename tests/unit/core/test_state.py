"""The state between segments: a video goes on from it, and only from its own."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from comfyui_multitalk.multitalk_core.errors import InputError
from comfyui_multitalk.multitalk_core.inputs.speech import Speech
from comfyui_multitalk.multitalk_core.method.state import SegmentState
from comfyui_multitalk.tests.support.film import SAMPLING, Film, draw, two_speakers, voices
from comfyui_multitalk.tests.support.transformer import CONFIG


@pytest.mark.parametrize("method", ["multitalk", "infinitetalk"])
def test_engine_goes_on_from_a_state_read_back_from_disk(method: str, tmp_path: Path) -> None:
    """Another engine, after the first segment: the rest of the video is the same, bit for bit."""
    config = replace(SAMPLING, method=method, color_match=0.5)
    speech = Speech(features=voices(2, num_frames=30), num_frames=20)
    expected = [part.frames for part in two_speakers(speech=speech, config=config).segments()]
    first = next(two_speakers(speech=speech, config=config).segments())
    assert first.state is not None
    save_file(first.state.tensors(), tmp_path / "state.safetensors")
    state = SegmentState.from_tensors(load_file(tmp_path / "state.safetensors"))
    rest = list(two_speakers(speech=speech, config=config).segments(state))
    assert rest[-1].state is None
    assert len(rest) == 3
    made = [first.frames, *(part.frames for part in rest)]
    assert all(torch.equal(a, b) for a, b in zip(made, expected, strict=True))


@pytest.mark.parametrize(
    ("changes", "name"),
    [
        ({"config": replace(SAMPLING, steps=3)}, "steps"),
        ({"seed": 1}, "seed"),
        ({"photo": torch.zeros(40, 60, 3, dtype=torch.uint8)}, "photo"),
        ({"text": draw(1, 4, CONFIG.text_dim, seed=8)}, "prompt"),
        ({"speech": Speech(features=voices(1, num_frames=15), num_frames=12)}, "voices"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_engine_refuses_a_state_of_other_settings_by_their_name(
    changes: dict[str, Any], name: str
) -> None:
    state = next(Film().segments()).state
    with pytest.raises(InputError, match=f"made with another {name} "):
        next(replace(Film(), **changes).segments(state))


def test_state_that_is_something_else_is_said() -> None:
    with pytest.raises(InputError, match="no saved state"):
        SegmentState.from_tensors({"num_done": torch.tensor(1)})
