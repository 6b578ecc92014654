"""Runs inside ComfyUI's Python: measures what sampling promises, prints one JSON object.

python sampling.py COMFYUI PACK TINY SCRATCH
"""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Callable
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

from sampling_fast import cached, fast
from sampling_scene import CONFIG, SEED, Scene, draw
from sampling_schedules import right, schedules
from scene import SCRATCH, TINY, distance

# isort: split
import comfy.hooks
import comfy.samplers
import comfy.sd
import comfy.utils
import torch
from comfy.cli_args import LatentPreviewMethod, args
from comfy.taesd.taehv import TAEHV
from safetensors.torch import save_file
from torch import Tensor

from comfyui_multitalk.multitalk_core.config import ApgConfig
from comfyui_multitalk.multitalk_core.errors import InputError
from comfyui_multitalk.multitalk_core.method.conditioning import Condition, Motion
from comfyui_multitalk.multitalk_core.method.sampler import SegmentModel, solve
from comfyui_multitalk.nodes.host import sampling

SCALES = {
    "three passes": CONFIG,
    "text alone": replace(CONFIG, audio_guidance=1.0),
    "audio alone": replace(CONFIG, text_guidance=1.0),
    "one pass": replace(CONFIG, text_guidance=1.0, audio_guidance=1.0),
    "apg": replace(CONFIG, apg=ApgConfig()),
    "half the voice": replace(CONFIG, audio_strength=0.5),
}


def equality(scene: Scene) -> dict[str, Any]:
    """One segment three ways: core without ComfyUI's samplers, our sampler, the guider."""
    found = {}
    runs = [(name, 1) for name in SCALES] + [("three passes", 2), ("audio alone", 2)]
    for name, people in runs:
        spoken, config = scene.spoken(people), SCALES[name]
        (core,) = scene.segments(spoken, config, solve)
        (ours,) = scene.segments(spoken, config, scene.solver())
        theirs = scene.guided(spoken, config)
        found[f"{name}, {people}"] = {
            "sampler": distance(ours, core),
            "guider": distance(theirs, ours),
        }
    return found


def differing(scene: Scene) -> dict[str, Any]:
    """How far the latents of other scales are from those of the default ones."""
    spoken = scene.spoken(1)
    plain = scene.guided(spoken, CONFIG)
    return {
        name: distance(scene.guided(spoken, config), plain)
        for name, config in SCALES.items()
        if config is not CONFIG
    }


def segments(scene: Scene) -> dict[str, Any]:
    """A video of two segments with Euler, with ComfyUI around it and without."""
    found = {}
    for method in ("multitalk", "infinitetalk"):
        config = replace(CONFIG, method=method)
        spoken = scene.spoken(1, num_frames=13)
        pairs = zip(
            scene.segments(spoken, config, scene.solver()),
            scene.segments(spoken, config, solve),
            strict=True,
        )
        found[method] = [distance(ours, core) for ours, core in pairs]
    return found


def later(scene: Scene) -> dict[str, Any]:
    """A segment that begins later in the sound, against the sound from there on."""
    whole = scene.spoken(1)
    (features,) = whole.speech.features
    features[:4] = features[4]  # as a window repeats the first frame where the sound begins
    rest = replace(whole, speech=replace(whole.speech, features=(features[4:],)))
    late = scene.guided(whole, CONFIG, start_frame=4)
    return {
        "from_there": distance(late, scene.guided(rest, CONFIG)),
        "from_the_start": distance(late, scene.guided(whole, CONFIG)),
    }


def kept(scene: Scene) -> dict[str, Any]:
    """What the model is shown of the frames taken over, at every call by every sampler."""
    found = {}
    for method in ("multitalk", "infinitetalk"):
        motion = Motion(draw(1, 16, 2, 4, 6, seed=30), clean=method == "infinitetalk", draws=True)
        for name in sampling.SAMPLERS:
            found[f"{name}, {method}"] = kept_by(scene, name, motion)
    return found


def kept_by(scene: Scene, name: str, motion: Motion, *, index: int = 1) -> dict[str, Any]:
    """The same for one sampler; a cheap function stands for the transformer."""
    noise = draw(1, 16, 3, 4, 6, seed=31)
    shown: list[tuple[Tensor, float]] = []
    steps: list[tuple[int, int]] = []

    def call(_: Any, given: dict[str, Any]) -> Tensor:
        shown.append((given["input"][:1, :, :2], float(given["timestep"][0])))
        return given["input"] * 0.5

    patched = scene.model.clone()
    patched.set_model_unet_function_wrapper(call)
    solver = sampling.SegmentSolver(
        patched,
        positive={},
        negative={},
        sampler_name=name,
        scheduler="multitalk",
        shift=CONFIG.shift,
        seed=SEED,
    )
    latents = solver(
        noise,
        SegmentModel(
            index=index,
            transformer=scene.session.transformer,
            condition=Condition(draw(1, 20, 3, 4, 6), draw(1, 257, 64), motion),
            windows=scene.spoken(1).speech.windows(SimpleNamespace(start=4, stop=13)),
            text=scene.prompts[0][0][0],
            negative_text=scene.prompts[1][0][0],
            token_masks=None,
            audio_strength=1.0,
        ),
        config=replace(CONFIG, steps=4),
        generator=torch.Generator().manual_seed(SEED),
        on_step=lambda step, num_steps, _: steps.append((step, num_steps)),
    )
    level = [0.0 if motion.clean else sigma for _, sigma in shown]
    added = [
        (x - (1 - sigma) * motion.latents) / max(sigma, 1e-9)
        for (x, _), sigma in zip(shown, level, strict=True)
    ]
    return {
        "calls": len(shown),
        "steps": steps,
        "clean": max(float((x - motion.latents).abs().max()) for x, _ in shown),
        "noise": [float(one.std()) for one in added],
        "same_noise": max(float((one - noise[:, :, :2]).abs().max()) for one in added),
        "end": torch.equal(latents[:, :, :2], motion.latents),
        "rest": float(latents[:, :, 2:].std()),
    }


TAE = "lighttaew2_1.safetensors"


def previews(scene: Scene) -> dict[str, Any]:
    """Sizes of the previews of a video of two segments, without and with a small autoencoder."""
    folder = SCRATCH / "models" / "vae_approx"
    folder.mkdir(parents=True)
    weights = TAEHV(latent_channels=16).state_dict()
    save_file({name: value.half() for name, value in weights.items()}, folder / TAE)
    shown: list[list[int]] = []

    def show(_: Any, __: Any, preview: Any, **___: Any) -> None:
        shown.append(list(preview[1].size))

    comfy.utils.set_progress_bar_global_hook(show)
    found = {}
    for method in (LatentPreviewMethod.Latent2RGB, LatentPreviewMethod.TAESD):
        args.preview_method = method
        scene.segments(
            scene.spoken(1, num_frames=13),
            replace(CONFIG, text_guidance=1.0, audio_guidance=1.0),
            scene.solver(),
            on_step=scene.session.reporter(),
        )
        found[method.value] = shown.copy()
        shown.clear()
    return found


def draws(scene: Scene) -> dict[str, Any]:
    """What a sampler draws: again the same, and other noise in another segment."""
    motion = Motion(draw(1, 16, 2, 4, 6, seed=30), clean=True, draws=True)
    once, again, later = (
        kept_by(scene, "dpmpp_sde", motion, index=index)["rest"] for index in (1, 1, 2)
    )
    return {"again": once == again, "later": once != later}


def patches(scene: Scene) -> dict[str, Any]:
    """What other nodes put into a MODEL: it reaches the guider and the sampler."""
    spoken, config = scene.spoken(1), CONFIG
    one = replace(config, text_guidance=1.0, audio_guidance=1.0)
    plain = scene.guided(spoken, one)
    after, before, batched = (scene.model.clone() for _ in range(3))
    after.set_model_sampler_post_cfg_function(lambda given: given["cond_denoised"])
    scales: list[float] = []

    def full_alone(given: dict[str, Any]) -> list[Tensor]:
        scales.append(given["cond_scale"])
        return [given["conds_out"][0] for _ in given["conds_out"]]

    before.set_model_sampler_pre_cfg_function(full_alone)
    batches: list[list[int]] = []

    def call(apply: Any, given: dict[str, Any]) -> Tensor:
        batches.append(sorted(given["cond_or_uncond"]))
        result: Tensor = apply(given["input"], given["timestep"], **given["c"])
        return result

    batched.set_model_unet_function_wrapper(call)
    found = {
        "post_cfg": distance(scene.guided(spoken, config, patched=after), plain),
        "pre_cfg": distance(scene.guided(spoken, config, patched=before), plain),
        "wrapped": distance(
            scene.guided(spoken, config, patched=batched), scene.guided(spoken, config)
        ),
        "one_speaker": batches[:2],
        "scales": scales,
    }
    batches.clear()
    scene.guided(scene.spoken(2), config, patched=batched)
    return {**found, "two_speakers": batches[:2]}


def formula(scene: Scene) -> dict[str, Any]:
    """A patch that wants the formula of the guidance for itself."""
    spoken = scene.spoken(1)
    patched = scene.model.clone()
    patched.set_model_sampler_cfg_function(lambda given: given["cond"] * 0)
    records: list[logging.LogRecord] = []
    handler = logging.Handler()
    handler.emit = records.append  # type: ignore[method-assign]
    logging.getLogger().addHandler(handler)
    changed = scene.guided(spoken, CONFIG, patched=patched)
    logging.getLogger().removeHandler(handler)
    return {
        "changed": distance(changed, scene.guided(spoken, CONFIG)),
        "said": " ".join(record.getMessage() for record in records),
    }


def prompts(scene: Scene) -> dict[str, Any]:
    """Conditionings as ComfyUI's nodes make them: a batch, two at once, one for a while."""
    positive, negative, _ = scene.conditioning()
    spoken = scene.spoken(1)

    def run(prompt: Any, *, batch: int = 1, seed: int = SEED) -> Tensor:
        guider = scene.guider(spoken, CONFIG, prompt, negative)
        samples: Tensor = guider.sample(
            draw(1, 16, 3, 4, 6, seed=seed).expand(batch, -1, -1, -1, -1),
            torch.zeros(batch, 16, 3, 4, 6),
            comfy.samplers.sampler_object("euler"),
            sampling.upstream_sigmas(2, shift=7.0),
            disable_pbar=True,
            seed=seed,
        )
        return samples

    plain = run(positive)
    tokens, told = positive[0]
    other = scene.prompts[1][0][0]
    early = [[tokens, {**told, "end_percent": 0.01}], [other, {**told, "start_percent": 0.01}]]
    return {
        "twice": distance(run([*positive, *positive]), plain),
        "batch": distance(run(positive, batch=2)[1:], plain),
        "for_a_while": distance(run(early), plain),
        "repeatable": torch.equal(run(positive), plain),
    }


def hooked(scene: Scene) -> dict[str, Any]:
    """A LoRA hooked to the prompts, against the same LoRA in the MODEL."""
    spoken = scene.spoken(1)
    file = comfy.utils.load_torch_file(str(TINY / "lora_tiny.safetensors"))
    patched, _ = comfy.sd.load_lora_for_models(scene.model, None, file, 1.0, 0.0)
    expected = scene.guided(spoken, CONFIG, patched=patched)
    hooks = comfy.hooks.create_hook_lora(file, 1.0, 0.0)
    told = {"hooks": hooks}
    (ours,) = scene.segments(spoken, CONFIG, scene.solver(positive=told, negative=told))
    plain = scene.prompts
    scene.prompts = [[[tokens, {**rest, **told}]] for ((tokens, rest),) in plain]
    theirs = scene.guided(spoken, CONFIG)
    scene.prompts = plain
    return {
        "guider": distance(theirs, expected),
        "sampler": distance(ours, expected),
        "effect": distance(scene.guided(spoken, CONFIG), expected),
    }


def mistakes(scene: Scene) -> dict[str, Any]:
    """Wrong wiring, and what is said."""
    positive, negative, _ = scene.conditioning()

    def sample(shape: tuple[int, ...]) -> None:
        scene.guider(scene.spoken(1), CONFIG, positive, negative).sample(
            torch.zeros(shape),
            torch.zeros(shape),
            comfy.samplers.sampler_object("euler"),
            torch.tensor([1.0, 0.0]),
        )

    tries: dict[str, Callable[[], Any]] = {
        "base": lambda: scene.guider(
            scene.spoken(1), CONFIG, positive, negative, patched=scene.base
        ),
        "no negative": lambda: scene.guider(scene.spoken(1), CONFIG, positive, None),
        "no photo": lambda: scene.guider(scene.spoken(2), CONFIG, positive, negative, image=None),
        "late": lambda: scene.guider(scene.spoken(1), CONFIG, positive, negative, start_frame=9),
        "picture": lambda: sample((1, 16, 4, 6)),
    }
    said = {}
    for name, action in tries.items():
        try:
            action()
        except InputError as error:
            said[name] = str(error)
    return said


def main() -> None:
    """Measure everything."""
    logging.getLogger().setLevel(logging.WARNING)
    parts: dict[str, Callable[[Scene], dict[str, Any]]] = {
        "equality": equality,
        "differing": differing,
        "formula": formula,
        "segments": segments,
        "later": later,
        "kept": kept,
        "right": right,
        "schedules": schedules,
        "previews": previews,
        "draws": draws,
        "patches": patches,
        "prompts": prompts,
        "hooked": hooked,
        "fast": fast,
        "cached": cached,
        "mistakes": mistakes,
    }
    with torch.inference_mode():
        scene = Scene()
        result = {name: part(scene) for name, part in parts.items()}
    sys.stdout.write("\n" + json.dumps(result) + "\n")


main()
