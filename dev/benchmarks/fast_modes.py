"""What the fast modes save and change, on the trained tiny set: a Markdown table of ratios.

python -m comfyui_multitalk.dev.benchmarks.fast_modes [--clips 2] [--steps 20] [--shift 3]

Each row is compared with the same clips without fast modes: the share of model passes that ran, the
error of a segment's latents (relative norm), and how well the mouth follows the voice. Passes are
counted, not timed; at real sizes they take nearly all of the time.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ...multitalk_core.config import SamplingConfig
from ...multitalk_core.method.guidance import Pass
from ...multitalk_core.method.sampler import EulerSampler, SegmentInputs, Velocities
from ..evaluate_tiny.rows import follow
from ..evaluate_tiny.scenes import DrawnPhoto, Utterance, cut_voices, draw_scenes
from ..evaluate_tiny.system import MATCHED, SEGMENT_FRAMES, System
from ..train_tiny.voices import load_voices

MODES: dict[str, dict[str, float]] = {
    "none": {},
    **{f"step_cache {value}": {"step_cache": value} for value in (0.02, 0.05, 0.1, 0.2)},
    "text_guidance_end 0.5": {"text_guidance_end": 0.5},
    "audio_guidance_end 0.5": {"audio_guidance_end": 0.5},
    "both guidances end 0.5": {"text_guidance_end": 0.5, "audio_guidance_end": 0.5},
    "both guidances end 0.5, step_cache 0.05": {
        "text_guidance_end": 0.5,
        "audio_guidance_end": 0.5,
        "step_cache": 0.05,
    },
}


class CountingSampler(EulerSampler):
    """Notes each pass it runs and the latents of each segment."""

    def __init__(self, *args: Any, **given: Any) -> None:
        super().__init__(*args, **given)
        self.ran: list[Pass] = []
        self.made: list[Tensor] = []

    def sample(self, noise: Tensor, inputs: SegmentInputs) -> Tensor:
        """Sample a segment."""
        self.made.append(super().sample(noise, inputs))
        return self.made[-1]

    def velocities(self, inputs: SegmentInputs, **given: Any) -> Velocities:
        """Give the model as a function."""
        inner = super().velocities(inputs, **given)

        def counted(latents: Tensor, timestep: float, passes: Sequence[Pass]) -> list[Tensor]:
            self.ran.extend(passes)
            return inner(latents, timestep, passes)

        return counted


class Clip(NamedTuple):
    """One clip made in one mode."""

    latents: Tensor
    passes: int
    correlation: float


def make(
    system: System, scene: DrawnPhoto, voice: Utterance, *, config: SamplingConfig, seed: int
) -> Clip:
    """Make one segment and measure it."""
    samplers: list[CountingSampler] = []

    def counting(*args: Any, **given: Any) -> CountingSampler:
        samplers.append(CountingSampler(*args, **given))
        return samplers[-1]

    video = system.film(
        scene,
        [voice],
        num_frames=SEGMENT_FRAMES,
        negative_prompt="",
        config=config,
        seed=seed,
        sampler=counting,
    )
    (sampler,) = samplers
    return Clip(sampler.made[0], len(sampler.ran), follow(video, scene.mouths[0], voice))


def table(
    system: System, cast: Sequence[tuple[DrawnPhoto, Utterance]], config: SamplingConfig
) -> str:
    """Measure every mode; give the table."""
    lines = ["| mode | passes run | latents off by | mouth follows voice |", "|---|---|---|---|"]
    plain: list[Clip] = []
    for name, mode in MODES.items():
        clips = [
            make(system, scene, voice, config=replace(config, **mode), seed=seed)
            for seed, (scene, voice) in enumerate(cast)
        ]
        plain = plain or clips
        run = sum(clip.passes for clip in clips) / sum(clip.passes for clip in plain)
        off = statistics.fmean(
            float((one.latents - other.latents).norm() / other.latents.norm())
            for one, other in zip(clips, plain, strict=True)
        )
        follows = statistics.fmean(clip.correlation for clip in clips)
        lines.append(f"| {name} | {run:.0%} | {off:.3f} | {follows:.3f} |")
        sys.stderr.write(lines[-1] + "\n")
    return "\n".join(lines) + "\n"


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(prog="fast_modes", description=__doc__)
    models = Path(__file__).resolve().parents[2] / "models" / "tiny"
    parser.add_argument("--clips", type=int, default=2)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--shift", type=float, default=MATCHED.shift)
    parser.add_argument("--text-guidance", type=float, default=2.0)
    parser.add_argument("--audio-guidance", type=float, default=2.0)
    options = parser.parse_args()
    config = replace(
        MATCHED,
        steps=options.steps,
        shift=options.shift,
        text_guidance=options.text_guidance,
        audio_guidance=options.audio_guidance,
    )
    scenes = draw_scenes(options.clips, people=1)
    voices = cut_voices(load_voices(models / "voices.npz"), options.clips)
    with torch.inference_mode():
        sys.stdout.write(table(System(models), list(zip(scenes, voices, strict=True)), config))


if __name__ == "__main__":
    main()
