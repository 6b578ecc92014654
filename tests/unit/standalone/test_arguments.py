"""The command line's settings reach the request."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from comfyui_multitalk.multitalk_core.config import DEFAULTS, SamplingConfig
from comfyui_multitalk.multitalk_core.errors import InputError
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


def test_quick_takes_as_many_steps_as_the_quick_workflow(repository: Path) -> None:
    graph = json.loads((repository / "workflows/api/photo_to_talking_video_quick.json").read_text())
    (sampler,) = (node for node in graph.values() if node["class_type"] == "MTK_Sampler")
    for name in ("steps", "shift", "text_guidance", "audio_guidance"):
        assert getattr(sampling("--preset", "quick"), name) == sampler["inputs"][name], name


@pytest.mark.parametrize("method", ["multitalk", "infinitetalk", "flashtalk"])
def test_method_brings_its_own_settings(method: str) -> None:
    assert sampling("--method", method) == DEFAULTS[method]
    assert sampling("--method", method, "--motion-frames", "13").motion_frames == 13


def test_larger_shift_at_720p_is_not_flashtalks() -> None:
    assert sampling("--size", "720p").shift == 11
    assert sampling("--size", "720p", "--method", "flashtalk").shift == 5


def test_largest_seed_is_the_runs() -> None:
    assert request("--seed", str(2**64 - 1)).seed == 2**64 - 1


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("--seed", str(2**64)), "argument --seed: '18446744073709551616' is no seed"),
        (("--seed=-1",), "'-1' is no seed; give a whole number from 0 to"),
        (("--seed", "1e3"), "'1e3' is no seed"),
        (("--motion-frames", "0"), "`motion_frames` is 0; it must be a multiple of 4, plus 1"),
        (("--segment-frames", "1005"), "`segment_frames` is 1005.*at most 1001, such as 1001"),
        (("--segment-frames", "1" + "0" * 400), "`segment_frames` is 1000.*at most 1001"),
        (("--steps", "1" + "0" * 400), "`steps` is 1000"),
        (("--shift", "nan"), "`shift` is nan"),
        (("--shift", "1e999"), "`shift` is inf"),
        (("--step-cache", "nan"), "`step_cache` is nan"),
        (("--audio-strength", "-1"), "`audio_strength` is -1"),
        (("--text-guidance", "nan"), "`text_guidance` is nan"),
        (("--lora", "x.safetensors:1e308"), "with a strength from -100 to 100"),
        (("--lora", "x.safetensors:-inf"), "with a strength from -100 to 100"),
        (
            ("--negative-prompt", "\udcff"),
            "argument --negative-prompt: it holds bytes that are not UTF",
        ),
        (("--method", "flashtalk", "--preset", "quick"), "FlashTalk is distilled itself. Leave"),
        (("--method", "flashtalk", "--steps", "8"), "distilled to 4 .* but `steps` is 8"),
        (("--image", "other.png"), "argument --image: may be given only once"),
        (("--seed", "1", "--seed", "2"), "argument --seed: may be given only once"),
        (("-o", "b.mp4"), "argument -o/--output: may be given only once"),
        (("--mode", "in_turn", "--mode", "together"), "argument --mode: may be given only once"),
    ],
    ids=lambda value: " ".join(value)[:40] if isinstance(value, tuple) else "",
)
def test_impossible_value_is_refused_in_one_sentence(words: tuple[str, ...], says: str) -> None:
    with pytest.raises(InputError, match=says):
        request(*words)
