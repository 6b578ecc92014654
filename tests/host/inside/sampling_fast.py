"""Fast modes with ComfyUI around them and without, for `sampling.py`."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

from sampling_scene import CONFIG, SEED, Core, Scene, draw
from sampling_schedules import SPREAD
from scene import distance

# isort: split
import torch
from torch import Tensor

from comfyui_multitalk.multitalk_core.config import ApgConfig, SamplingConfig
from comfyui_multitalk.multitalk_core.method.conditioning import Condition, Motion
from comfyui_multitalk.multitalk_core.method.sampler import SegmentModel, solve
from comfyui_multitalk.nodes.host import sampling

STEPS = 8
MODES = {
    "parts": {"text_guidance_end": 0.5, "audio_guidance_start": 0.25},
    "parts, apg": {"text_guidance_start": 0.25, "audio_guidance_end": 0.5, "apg": ApgConfig()},
    "cache": {"step_cache": 0.9},
    "cache, apg": {"step_cache": 0.9, "apg": ApgConfig()},
    "cache, one pass": {"step_cache": 0.9, "text_guidance": 1.0, "audio_guidance": 1.0},
    "both": {"step_cache": 0.9, "text_guidance_end": 0.5, "audio_guidance_end": 0.5},
}
CACHED = (
    *("euler", "heun", "dpm_2", "dpmpp_2m", "res_multistep", "uni_pc"),
    *("euler_ancestral", "lcm", "dpmpp_2m_sde", "er_sde"),
)
"""Samplers of each kind: one call a step, several, those that look back, those that add noise."""


def fast(scene: Scene) -> dict[str, Any]:
    """Each fast mode three ways, as `equality`; and how far it is from none."""
    found = {}
    slow = replace(CONFIG, steps=STEPS)
    for name, mode in MODES.items():
        config = replace(slow, **mode)
        plain = replace(config, step_cache=0.0)
        if name.startswith("parts"):
            plain = replace(slow, apg=config.apg)
        spoken = scene.spoken(1, num_frames=13)
        called = Core(scene.session.transformer)
        core = scene.segments(spoken, config, solve, core=called)
        ours = scene.segments(spoken, config, scene.solver())
        without = scene.segments(spoken, plain, solve)
        alone = scene.spoken(1)
        (first,) = scene.segments(alone, config, scene.solver())
        found[name] = {
            "sampler": [distance(a, b) for a, b in zip(ours, core, strict=True)],
            "guider": distance(scene.guided(alone, config), first),
            "off": distance(core[0], without[0]),
            "steps_run": len(set(called.called)),
            "batches": _batches(scene, config),
        }
    return found


def _batches(scene: Scene, config: SamplingConfig) -> list[int]:
    """Count the passes in each call of the model that ComfyUI makes."""
    sizes: list[int] = []

    def call(apply: Any, given: dict[str, Any]) -> Tensor:
        sizes.append(len(given["cond_or_uncond"]))
        result: Tensor = apply(given["input"], given["timestep"], **given["c"])
        return result

    patched = scene.model.clone()
    patched.set_model_unet_function_wrapper(call)
    scene.guided(scene.spoken(1), config, patched=patched)
    return sizes


def cached(scene: Scene) -> dict[str, Any]:
    """Samplers with a step cache on a model of which all is known, against none."""
    found = {}
    for name in CACHED:
        plain, every = _known(scene, name, 0.0)
        quick, some = _known(scene, name, 0.1)
        found[name] = {
            "off": distance(quick, plain),
            "spread": float(quick[:, :, 2:].std()) / SPREAD,
            "saved": 1 - some / every,
        }
    return found


def _known(scene: Scene, name: str, threshold: float) -> tuple[Tensor, int]:
    """Sample a segment from a model with normal clean latents; give it and the model's calls."""
    calls: list[float] = []

    def call(_: Any, given: dict[str, Any]) -> Tensor:
        x, level = given["input"], float(given["timestep"][0])
        calls.append(level)
        rest = 1 - level
        return rest * SPREAD**2 * x / (rest**2 * SPREAD**2 + level**2)

    patched = scene.model.clone()
    patched.set_model_unet_function_wrapper(call)
    config = replace(
        CONFIG, steps=30, shift=3.0, text_guidance=1.0, audio_guidance=1.0, step_cache=threshold
    )
    solver = sampling.SegmentSolver(
        patched,
        positive={},
        negative={},
        sampler_name=name,
        scheduler="multitalk",
        shift=config.shift,
        seed=SEED,
    )
    motion = Motion(draw(1, 16, 2, 8, 8, seed=30) * SPREAD, clean=False, draws=True)
    latents = solver(
        draw(1, 16, 6, 8, 8, seed=31),
        SegmentModel(
            index=1,
            transformer=scene.session.transformer,
            condition=Condition(draw(1, 20, 6, 8, 8), draw(1, 257, 64), motion),
            windows=scene.spoken(1).speech.windows(SimpleNamespace(start=0, stop=21)),
            text=scene.prompts[0][0][0],
            negative_text=None,
            token_masks=None,
            audio_strength=1.0,
        ),
        config=config,
        generator=torch.Generator().manual_seed(SEED),
        on_step=lambda *_: None,
    )
    return latents, len(calls)
