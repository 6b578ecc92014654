"""Inputs that several nodes share."""

from __future__ import annotations

from comfy_api.latest import io

from ..multitalk_core.config import SamplingConfig

_UPSTREAM = SamplingConfig()


def schedule_inputs() -> list[io.Input]:
    """Return the inputs of upstream's schedule, with its defaults."""
    return [
        io.Int.Input(
            "steps",
            default=_UPSTREAM.steps,
            min=1,
            max=1000,
            tooltip="Sampling steps for each segment: 40, or 4 to 8 with a distilled LoRA.",
        ),
        io.Float.Input(
            "shift",
            default=_UPSTREAM.shift,
            min=0.01,
            max=100.0,
            step=0.01,
            tooltip="Shift of the noise schedule: 7 at 480p, 11 at 720p, 2 with a distilled LoRA.",
        ),
    ]


def guidance_inputs() -> list[io.Input]:
    """Return the inputs of the guidance, with upstream's defaults."""
    return [
        io.Float.Input(
            "text_guidance",
            default=_UPSTREAM.text_guidance,
            min=0.0,
            max=100.0,
            step=0.1,
            tooltip=(
                "Text guidance scale (CFG). With higher values the video follows the prompt more "
                "closely. 1 turns it off and saves one of the three model passes in a step."
            ),
        ),
        io.Float.Input(
            "audio_guidance",
            default=_UPSTREAM.audio_guidance,
            min=0.0,
            max=100.0,
            step=0.1,
            tooltip=(
                "Audio guidance scale. With higher values the lips move more. 1 turns it off and "
                "saves one model pass in each step."
            ),
        ),
        io.Float.Input(
            "audio_strength",
            default=_UPSTREAM.audio_strength,
            min=0.0,
            max=10.0,
            step=0.05,
            tooltip=(
                "Multiplier of the audio layers' output. With 0 the voices have no effect on the "
                "picture."
            ),
        ),
        io.Boolean.Input(
            "apg",
            default=False,
            tooltip=(
                "Adaptive projected guidance (APG). It reduces oversaturated colours at high "
                "guidance scales."
            ),
        ),
    ]


def fast_inputs() -> list[io.Input]:
    """Return the inputs of the fast modes, which run the model less often; off by default."""
    return [
        *_part_inputs("text_guidance", of="text guidance"),
        *_part_inputs("audio_guidance", of="audio guidance"),
        io.Float.Input(
            "step_cache",
            default=_UPSTREAM.step_cache,
            min=0.0,
            max=1.0,
            step=0.01,
            optional=True,
            advanced=True,
            tooltip=(
                "Threshold of the step cache. A step reuses the model's last output while the "
                "estimated change is below this share. With 0.05 the model runs in about half of "
                "20 steps; 0 turns the cache off. Samplers that add noise gain little or nothing."
            ),
        ),
    ]


def _part_inputs(name: str, *, of: str) -> list[io.Input]:
    return [
        io.Float.Input(
            f"{name}_{end}",
            default=default,
            min=0.0,
            max=1.0,
            step=0.05,
            optional=True,
            advanced=True,
            tooltip=(
                f"The {of} {verb} after this share of the steps (0 to 1). {where} its scale is 1 "
                "and its model pass is not run."
            ),
        )
        for end, default, verb, where in (
            ("start", 0.0, "begins", "Before that"),
            ("end", 1.0, "ends", "After that"),
        )
    ]
