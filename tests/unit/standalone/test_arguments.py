"""The command line's settings reach the request."""

from __future__ import annotations

import pytest

from comfyui_multitalk.multitalk_core.config import SamplingConfig
from comfyui_multitalk.standalone.arguments import build_request, parse
from comfyui_multitalk.standalone.request import Request

FAST = {
    "text_guidance_start": 0.1,
    "text_guidance_end": 0.5,
    "audio_guidance_start": 0.2,
    "audio_guidance_end": 0.75,
    "step_cache": 0.05,
}
NEEDED = (
    *("image", "audio", "prompt", "output"),
    *("base", "wav2vec", "vae", "text-encoder", "clip-vision"),
)


def request(*extra: str) -> Request:
    needed = [word for name in NEEDED for word in (f"--{name}", f"{name}.file")]
    return build_request(parse(["generate", *needed, *extra]))


def sampling(*extra: str) -> SamplingConfig:
    return request(*extra).sampling


def test_fast_modes_are_off_unless_asked_for() -> None:
    assert sampling() == SamplingConfig()


@pytest.mark.parametrize("name", FAST)
def test_fast_mode_of_the_command_line_is_the_runs(name: str) -> None:
    asked = sampling(f"--{name.replace('_', '-')}", str(FAST[name]))
    assert asked == SamplingConfig(**{name: FAST[name]})


def test_attention_is_chosen_automatically_unless_asked_for() -> None:
    assert request().attention == "auto"


@pytest.mark.parametrize("name", ["auto", "torch", "flash", "sage"])
def test_attention_of_the_command_line_is_the_runs(name: str) -> None:
    assert request("--attention", name).attention == name
