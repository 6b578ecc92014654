"""The command line's settings reach the request."""

from __future__ import annotations

import pytest

from comfyui_multitalk.multitalk_core.config import SamplingConfig
from comfyui_multitalk.standalone.arguments import build_request, parse

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


def sampling(*extra: str) -> SamplingConfig:
    needed = [word for name in NEEDED for word in (f"--{name}", f"{name}.file")]
    return build_request(parse(["generate", *needed, *extra])).sampling


def test_fast_modes_are_off_unless_asked_for() -> None:
    assert sampling() == SamplingConfig()


@pytest.mark.parametrize("name", FAST)
def test_fast_mode_of_the_command_line_is_the_runs(name: str) -> None:
    asked = sampling(f"--{name.replace('_', '-')}", str(FAST[name]))
    assert asked == SamplingConfig(**{name: FAST[name]})
