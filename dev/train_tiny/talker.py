"""Stages `base` and `adapter`: the transformer, first without sound, then only its audio layers.

    python -m comfyui_multitalk.dev.train_tiny base --out DIR --minutes 9
    python -m comfyui_multitalk.dev.train_tiny adapter --out DIR --minutes 9 [--resume]

The model is `multitalk_core`'s own. `base` learns to keep the picture and to move heads, lids and
mouths; it has no audio. Its weights are rounded to Q8_0, as they will ship, and frozen. `adapter`
then learns what the voices add. The loss is that of flow matching, in the direction of
`multitalk_core.method.schedule`: at level t (0 to 1) the latents are (1 - t) clean + t noise, the
timestep is 1000 t and the velocity is noise - clean. Known latent frames add nothing to the loss.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from ...multitalk_core.config import ModelConfig
from ...multitalk_core.model.audio_tokens import AudioContext
from ...multitalk_core.model.dit import MultiTalkModel
from ..tiny.wan import TRAINED, is_audio
from .context import repeat_padding
from .dataset import Batch, Cache
from .rounding import pack, unpack

SEED = 4

_SHIFT = 3.0
"""Of the levels seen in training; see `multitalk_core.method.schedule.shift_timestep`."""
_AUDIO_END = "audio_cross_attn.proj.weight"
"""Begins at zero, so that the adapter begins as the base."""
_MOUTH_WEIGHT = 6.0
_WORDLESS = 0.1
_SOUNDLESS = 0.12
"""Part of the steps with the sampler's silence: one stream of zeros."""
_WARM_UP = 50  # steps
_LOG_EVERY = 25  # steps; odd, so that one and two people are seen


@dataclass(frozen=True, kw_only=True, slots=True)
class Plan:
    """How long and how fast to learn.

    Attributes:
        minutes: Time limit; the learning rate falls to zero towards its end.
        steps: Most steps.
        first_step: Steps done before; random draws go on after theirs.
        batch: Clips of one person in a step; of two people three quarters of it.
        learning_rate: Highest learning rate.
        ema: Share of the running average of weights that each step keeps.
    """

    minutes: float
    steps: int
    first_step: int
    batch: int
    learning_rate: float
    ema: float


class Draw(NamedTuple):
    """Random input of a step: noise in the latents' shape, and a noise level for each clip."""

    noise: Tensor
    level: Tensor


def build(config: ModelConfig, *, text_len: int) -> MultiTalkModel:
    """Build the model for training, with prompts of `text_len` rows instead of 512."""
    model = MultiTalkModel(replace(config, text_len=text_len), differentiable=True)
    for name, parameter in model.named_parameters():
        if parameter.ndim == 2 and name.startswith("blocks."):
            nn.init.xavier_uniform_(parameter)
        elif name.endswith("time_projection.1.weight"):
            nn.init.normal_(parameter, std=0.02)
        if name.startswith("head.head.") or name.endswith((".bias", _AUDIO_END)):
            nn.init.zeros_(parameter)
    return model


def draw_noise(latents: Tensor, *, generator: torch.Generator) -> Draw:
    """Draw noise and levels; levels are logit-normal, then shifted towards the noisy end."""
    noise = torch.randn(latents.shape, generator=generator, device=latents.device)
    level = torch.randn(len(latents), generator=generator, device=latents.device).sigmoid()
    return Draw(noise, _SHIFT * level / (1 + (_SHIFT - 1) * level))


def audio_tokens(model: MultiTalkModel, windows: Tensor, *, silence: bool) -> Tensor:
    """Turn windows `(B, S, T, 5, layers, channels)` into tokens `(B, F, S * n, token_dim)`.

    With `silence` they are the tokens of one stream of zeros, whatever the windows hold.
    """
    heard = torch.zeros_like(windows[:, :1]) if silence else windows
    tokens: Tensor = model.audio_proj(heard.flatten(0, 1))
    tokens = tokens.unflatten(0, heard.shape[:2])
    return tokens.transpose(1, 2).flatten(2, 3)


def loss_of(
    model: MultiTalkModel, batch: Batch, draw: Draw, *, silence: bool | None
) -> tuple[Tensor, Tensor]:
    """Give the weighted loss, and the plain one of the cells at the mouths.

    Args:
        model: With or without audio layers.
        batch: Clips.
        draw: Noise and levels for them.
        silence: Whether all clips get silence; `None` leaves the audio layers out.
    """
    level = draw.level.view(-1, 1, 1, 1, 1)
    noisy = torch.lerp(batch.latents, draw.noise, level)
    audio = None
    if silence is not None:
        tokens = audio_tokens(model, batch.windows, silence=silence)
        two = not silence and batch.windows.shape[1] > 1
        audio = AudioContext(tokens, batch.masks if two else None)
    velocity = model(
        noisy,
        1000 * draw.level,
        condition=batch.condition,
        text=batch.text,
        image=batch.image,
        audio=audio,
        hooks=repeat_padding(times=TRAINED.text_len - model.config.text_len + 1),
    )
    error = (velocity.float() - (draw.noise - batch.latents)).square().mean(dim=1, keepdim=True)
    free = (1 - batch.held).expand_as(error)
    mouths = batch.mouths * free
    weights = free + (_MOUTH_WEIGHT - 1) * mouths
    return (error * weights).sum() / weights.sum(), (error * mouths).sum() / mouths.sum()


class Average:
    """The running average of the trained weights."""

    def __init__(self, parameters: dict[str, nn.Parameter], *, keep: float) -> None:
        self._parameters = parameters
        self._keep = keep
        self.num_steps = 0
        self.weights = {name: value.detach().clone() for name, value in parameters.items()}

    @torch.no_grad()
    def update(self) -> None:
        """Add the current weights; early steps lose their share faster."""
        self.num_steps += 1
        keep = min(self._keep, (1 + self.num_steps) / (10 + self.num_steps))
        names = list(self._parameters)
        torch._foreach_lerp_(
            [self.weights[name] for name in names],
            [self._parameters[name].detach() for name in names],
            1 - keep,
        )


def train(model: MultiTalkModel, cache: Cache, plan: Plan, *, device: torch.device) -> Average:
    """Train the parameters that need gradients; return their running average."""
    parameters = {name: p for name, p in model.named_parameters() if p.requires_grad}
    average = Average(parameters, keep=plan.ema)
    optimiser = torch.optim.AdamW(
        parameters.values(),
        lr=plan.learning_rate,
        betas=(0.9, 0.98),
        weight_decay=0.01,
        fused=device.type == "cuda",
    )
    if device.type == "cuda":
        torch._dynamo.config.suppress_errors = True  # a box without compiler trains more slowly
        for block in model.blocks:
            block.compile(dynamic=False)
    hears = model.config.audio is not None
    for step, progress in _clock(plan):
        rate = plan.learning_rate * min(1.0, (step + 1) / _WARM_UP, 2.5 * (1 - progress) + 0.01)
        for group in optimiser.param_groups:
            group["lr"] = rate
        loss, mouths, silence = _step(
            model, cache, plan, step=plan.first_step + step, device=device, hears=hears
        )
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(parameters.values(), 1.0)
        optimiser.step()
        average.update()
        if step % _LOG_EVERY == 0:
            people = 1 + (plan.first_step + step) % 2
            kind = f"{people} people{', silence' if silence else ''}"
            sys.stdout.write(
                f"step {step} ({progress:.0%}), {kind}: loss {float(loss.detach()):.4f}, "
                f"mouths {float(mouths.detach()):.4f}\n"
            )
            sys.stdout.flush()
    return average


def _step(
    model: MultiTalkModel,
    cache: Cache,
    plan: Plan,
    *,
    step: int,
    device: torch.device,
    hears: bool,
) -> tuple[Tensor, Tensor, bool | None]:
    """Give the losses of one step, and its audio; clips of one and two people alternate."""
    people = 1 + step % 2
    generator = torch.Generator().manual_seed(SEED + 1000 * step)
    batch = cache.draw(
        plan.batch if people == 1 else plan.batch * 3 // 4,
        people=people,
        generator=generator,
        wordless=_WORDLESS,
    )
    silence = bool(torch.rand((), generator=generator) < _SOUNDLESS) if hears else None
    noise = torch.Generator(device).manual_seed(SEED + 1000 * step + 1)
    draw = draw_noise(batch.latents, generator=noise)
    with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
        loss, mouths = loss_of(model, batch, draw, silence=silence)
    return loss, mouths, silence


def _clock(plan: Plan) -> Iterator[tuple[int, float]]:
    """Count steps until the limit of time or steps, each with the share that is done."""
    began = time.monotonic()
    for step in range(plan.steps):
        progress = max(step / plan.steps, (time.monotonic() - began) / (60 * plan.minutes))
        if progress >= 1:
            return
        yield step, progress


def load_base(folder: Path) -> dict[str, Tensor]:
    """Read the base of a training folder, float32, rounded as it ships.

    Raises:
        FileNotFoundError: If it has not been trained yet.
    """
    return unpack(load_file(folder / "base.safetensors"))


def load_adapter(folder: Path) -> dict[str, Tensor]:
    """Read the audio layers of a training folder, float32.

    Raises:
        FileNotFoundError: If they have not been trained yet.
    """
    return unpack(load_file(folder / "adapter.safetensors"))


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add this stage's options to those of every stage."""
    parser.add_argument("--batch", type=int, default=64, help="clips of one person in a step")
    parser.add_argument("--learning-rate", type=float, default=1e-3)
    parser.add_argument("--ema", type=float, default=0.998)
    parser.add_argument("--layers", type=int, default=TRAINED.num_layers)
    parser.add_argument("--max-steps", type=int, default=1_000_000)


def run(arguments: argparse.Namespace) -> None:
    """Train the base or the adapter, as `arguments.stage` says."""
    device = torch.device(arguments.device)
    torch.manual_seed(SEED)
    torch.set_float32_matmul_precision("high")
    cache = Cache(arguments.out, device=device)
    result: Path = arguments.out / f"{arguments.stage}.safetensors"
    base_only = arguments.stage == "base"
    config = replace(TRAINED, num_layers=arguments.layers)
    config = replace(config, audio=None) if base_only else config
    model = build(config, text_len=cache.text_len)
    known = {} if base_only else load_base(arguments.out)
    first_step = 0
    if arguments.resume and result.is_file():
        known |= unpack(load_file(result))
        first_step = _steps_done(result)
    model.load_state_dict(known, strict=False)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(base_only or is_audio(name))
    plan = Plan(
        minutes=arguments.minutes,
        steps=arguments.max_steps,
        first_step=first_step,
        batch=arguments.batch,
        learning_rate=arguments.learning_rate,
        ema=arguments.ema,
    )
    average = train(model.to(device), cache, plan, device=device)
    draft = result.with_suffix(".part")
    done = first_step + average.num_steps
    packed = {name: value.contiguous() for name, value in _packed(average, base_only).items()}
    save_file(packed, draft, metadata={"steps": str(done)})
    draft.replace(result)
    sys.stdout.write(f"{result}: {done} steps, {result.stat().st_size:,} bytes\n")


def _packed(average: Average, base_only: bool) -> dict[str, Tensor]:
    """The base is rounded to Q8_0, the adapter to float16."""
    if base_only:
        return pack(average.weights)
    return {name: value.half().cpu() for name, value in average.weights.items()}


def _steps_done(path: Path) -> int:
    with safe_open(path, framework="pt") as file:
        return int((file.metadata() or {}).get("steps", 0))
