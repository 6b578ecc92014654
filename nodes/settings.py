"""Settings that several nodes offer in the same words."""

from __future__ import annotations

from comfy_api.latest import io

from ..multitalk_core.config import SamplingConfig

_UPSTREAM = SamplingConfig()


def schedule_inputs() -> list[io.Input]:
    """Give the inputs of upstream's schedule, with its defaults."""
    return [
        io.Int.Input(
            "steps",
            default=_UPSTREAM.steps,
            min=1,
            max=1000,
            tooltip="Sampling steps of each segment: 40, or 4 to 8 with a distilled LoRA.",
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
    """Give the inputs of the guidance, with upstream's defaults."""
    return [
        io.Float.Input(
            "text_guidance",
            default=_UPSTREAM.text_guidance,
            min=0.0,
            max=100.0,
            step=0.1,
            tooltip="Scale of the text guidance. 1 leaves it out and saves a pass of three.",
        ),
        io.Float.Input(
            "audio_guidance",
            default=_UPSTREAM.audio_guidance,
            min=0.0,
            max=100.0,
            step=0.1,
            tooltip="Scale of the audio guidance; more moves the lips more. 1 leaves it out.",
        ),
        io.Float.Input(
            "audio_strength",
            default=_UPSTREAM.audio_strength,
            min=0.0,
            max=10.0,
            step=0.05,
            tooltip="Multiplier of what the voices add to the picture; 0 is the base model.",
        ),
        io.Boolean.Input(
            "apg",
            default=False,
            tooltip="Adaptive projected guidance: less saturation at high guidance.",
        ),
    ]


def fast_inputs() -> list[io.Input]:
    """Give the inputs that run the model less often; by default they do nothing."""
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
                "Reuses the model's last answer while it would change by less than this share: "
                "0.05 runs about half of 20 steps, 0 runs all. With samplers that add noise it "
                "saves less or nothing."
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
            tooltip=f"Share of the steps after which the {of} {verb}; {where} its pass is saved.",
        )
        for end, default, verb, where in (
            ("start", 0.0, "begins", "before it"),
            ("end", 1.0, "ends", "from there on"),
        )
    ]
