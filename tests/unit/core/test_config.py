"""Settings of a video: each method's own, and those that cannot be."""

from __future__ import annotations

from dataclasses import replace

import pytest

from comfyui_multitalk.multitalk_core.config import DEFAULTS, SamplingConfig
from comfyui_multitalk.multitalk_core.errors import InputError

FLASHTALK = DEFAULTS["flashtalk"]


def test_each_methods_defaults_are_those_of_its_own_code() -> None:
    names = ("steps", "shift", "text_guidance", "audio_guidance", "segment_frames", "motion_frames")
    published = {
        "multitalk": (40, 7.0, 5.0, 4.0, 81, 25),
        "infinitetalk": (40, 7.0, 5.0, 4.0, 81, 9),
        "flashtalk": (4, 5.0, 1.0, 1.0, 33, 5),
    }
    for method, values in published.items():
        config = DEFAULTS[method]
        assert config.method == method
        assert tuple(getattr(config, name) for name in names) == values


def test_unknown_method_is_refused() -> None:
    with pytest.raises(InputError, match=r"Method 'x' is unknown. Choose 'multitalk', 'inf"):
        SamplingConfig(method="x")


@pytest.mark.parametrize("change", [{"steps": 40}, {"text_guidance": 5.0}, {"audio_guidance": 2.0}])
def test_flashtalk_with_what_it_is_not_distilled_for_is_refused(change: dict[str, float]) -> None:
    with pytest.raises(
        InputError, match=r"distilled to 4 .*Set them to 4, 1 and 1, and `shift` to"
    ):
        replace(FLASHTALK, **change)


def test_flashtalk_takes_two_steps() -> None:
    assert replace(FLASHTALK, steps=2).steps == 2


def test_flashtalk_animates_one_speaker() -> None:
    FLASHTALK.check_speakers(1)
    DEFAULTS["infinitetalk"].check_speakers(2)
    with pytest.raises(InputError, match=r"one speaker, and there are 2 voices"):
        FLASHTALK.check_speakers(2)
