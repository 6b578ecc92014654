"""Samplers and schedules on a model of which all is known, for `sampling.py`."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

from sampling_scene import CONFIG, Scene, draw

# isort: split
import comfy.samplers
import torch
from torch import Tensor

from comfyui_multitalk.nodes.host import sampling

SPREAD = 0.5


class Normal:
    """A model of which everything is known: its clean latents are normal around 0."""

    cfg = 1.0

    def __init__(self, levels: Any) -> None:
        self.inner_model = SimpleNamespace(model_sampling=levels)
        self.model_patcher = SimpleNamespace(
            model=self.inner_model, get_model_object=lambda _: levels
        )

    def __call__(self, x: Tensor, sigma: Tensor, **_: Any) -> Tensor:
        """Give the mean of what the clean latents may have been."""
        level = sigma.view(-1, 1, 1, 1, 1)
        rest = 1 - level
        return rest * SPREAD**2 * x / (rest**2 * SPREAD**2 + level**2)


def right(scene: Scene) -> dict[str, Any]:
    """How each sampler does on that model: spread of the result against the true one."""
    config = replace(CONFIG, steps=30, shift=3.0)
    patched = sampling.with_shift(scene.model, config.shift)
    toy = Normal(patched.get_model_object("model_sampling"))
    noise = draw(1, 16, 4, 8, 8, seed=40)
    found = {}
    for name in (*sampling.SAMPLERS, "res_multistep_ancestral"):
        for scheduler in sampling.SCHEDULERS:
            sigmas = sampling.schedule(
                patched, scheduler=scheduler, sampler_name=name, config=config
            )
            out = comfy.samplers.sampler_object(name).sample(
                toy, sigmas, {"seed": 1}, None, noise, torch.zeros_like(noise), None, True
            )
            found[f"{name}, {scheduler}"] = float(out.std()) / SPREAD
    return found


def schedules(scene: Scene) -> dict[str, Any]:
    """First and last noise level and the number of steps of every schedule."""
    found = {}
    for name in sampling.SCHEDULERS:
        for steps in (1, 4, 40):
            config = replace(CONFIG, steps=steps)
            model_of = sampling.with_shift(scene.model, config.shift)
            for sampler in ("euler", "uni_pc", "lcm"):
                sigmas = sampling.schedule(
                    model_of, scheduler=name, sampler_name=sampler, config=config
                )
                found[f"{name}, {steps}, {sampler}"] = sigmas.tolist()
    return found
