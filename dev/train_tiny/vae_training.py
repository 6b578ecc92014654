"""Stage `vae`: training of the tiny video autoencoder, and the quality it must reach.

Training starts with single pictures: they teach the decoder its first frame and all shapes at a
third of the cost. Then come clips of crops, half of them around a mouth, and at the end whole
pictures. All data is drawn during training. Noise on the latents makes the decoder robust to the
small errors of a transformer.
"""

from __future__ import annotations

import argparse
import copy
import json
import sys
import time
from dataclasses import asdict
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from .checkpoint import load_checkpoint, save_checkpoint
from .drawing import Window, boxes, render
from .faces import Faces, sample_faces
from .motion import Motion, sample_motion
from .vae import WIDTH, TinyVAE, activate
from .vae_gate import SIZES, Gate, evaluate, publish

SEED = 31
_CROP = 64
_FRAMES = 33
_MOUTH_WEIGHT = 4.0
_FIRST_FRAME_WEIGHT = 3.0
_EDGE_WEIGHT = 0.5
_SQUARE_WEIGHT = 2.0
_SCALE_WEIGHT = 0.01
_LATENT_NOISE = 0.05
_PICTURES_UNTIL = 0.22
_CROPS_UNTIL = 0.80
_WARM_UP_STEPS = 100
_FIRST_GATE = 0.02
_GATE_EVERY = 0.2
"""Parts of the time; the first gate shows early that all works, and how long a gate takes."""
_MOMENT_SCALE = 4096.0
"""Lifts square roots of second moments into the range of float16."""


class Batch(NamedTuple):
    """Frames `(B, 3, T, H, W)` in [-1, 1] and the weight of each, `(B, 1, T, H, W)`."""

    frames: Tensor
    weight: Tensor


def draw_batch(step: int, *, progress: float, pixels: int, device: torch.device) -> Batch:
    """Draw the data of a step; the same step and progress give the same.

    Args:
        step: Number of the step; it is the seed.
        progress: Share of the training that is done, in [0, 1].
        pixels: Approximate number of pixels to draw, over all clips and frames.
        device: Where to draw.
    """
    people = 1 + step % 2
    is_picture = progress < _PICTURES_UNTIL or step % 5 == 0
    is_crop = not is_picture and progress < _CROPS_UNTIL
    height, width = (_CROP, _CROP) if is_crop else SIZES[people]
    num_frames = 1 if is_picture else _FRAMES
    count = max(1, pixels // (height * width * num_frames))
    return draw_clips(
        SEED + step,
        count=count,
        people=people,
        num_frames=num_frames,
        is_crop=is_crop,
        device=device,
    )


def draw_clips(
    seed: int, *, count: int, people: int, num_frames: int, is_crop: bool, device: torch.device
) -> Batch:
    """Draw clips: whole, or crops of which half are around a mouth."""
    generator = torch.Generator().manual_seed(seed)
    size = SIZES[people]
    faces = sample_faces(count, people=people, generator=generator)
    motion = sample_motion(count, people=people, frames=num_frames, generator=generator)
    window = None
    if is_crop:
        corner = _crop_corners(faces, motion, size=size, generator=generator)
        window = Window(corner.to(device), _CROP, _CROP)
    faces, motion = faces.to(device), motion.to(device)
    frames = render(faces, motion, size=size, window=window)
    return Batch(frames, _weights(faces, motion, frames, size=size, window=window))


def _crop_corners(
    faces: Faces, motion: Motion, *, size: tuple[int, int], generator: torch.Generator
) -> Tensor:
    """Give left and top of crops, `(B, 2)`; every other crop is around a mouth."""
    count, people = motion.blink.shape[:2]
    limits = torch.tensor((size[1] - _CROP, size[0] - _CROP))
    chance = torch.rand((count, 2), generator=generator)
    anywhere = chance * (limits + 1)
    mouths = boxes(faces, motion, size=size).mouths.mean(dim=2)
    who = torch.randint(people, (count,), generator=generator)
    mouth = mouths[torch.arange(count), who].view(count, 2, 2).mean(dim=1)
    about = mouth - _CROP / 2 + (chance - 0.5) * _CROP / 2
    is_mouth = (torch.arange(count) % 2 == 0).unsqueeze(1)
    return torch.where(is_mouth, about, anywhere).floor().clamp(min=0).minimum(limits)


def _weights(
    faces: Faces, motion: Motion, frames: Tensor, *, size: tuple[int, int], window: Window | None
) -> Tensor:
    x = torch.arange(frames.shape[4]).to(frames) + 0.5
    y = torch.arange(frames.shape[3]).to(frames) + 0.5
    corner = frames.new_zeros(1, 2) if window is None else window.corner.to(frames)
    mouths = boxes(faces, motion, size=size).mouths - corner.repeat(1, 2)[:, None, None]
    left, top, right, bottom = mouths[..., None].unbind(3)
    across = (x > left) & (x < right)
    along = (y > top) & (y < bottom)
    inside = (along[..., :, None] & across[..., None, :]).any(dim=1).unsqueeze(1)
    weight = 1 + (_MOUTH_WEIGHT - 1) * inside
    if frames.shape[2] > 1:
        weight[:, :, 0] *= _FIRST_FRAME_WEIGHT
    return weight


def loss_of(model: TinyVAE, batch: Batch, *, noise: torch.Generator) -> Tensor:
    """Reconstruct and compare: values, edges, and the scale of the latents."""
    latents = model.encode(batch.frames)
    mean = latents.mean(dim=(0, 2, 3, 4))
    std = latents.std(dim=(0, 2, 3, 4))
    scale = (mean.square() + (std - 1).square()).mean()
    drawn = torch.randn(latents.shape, generator=noise, device=latents.device)
    difference = model.decode(latents + _LATENT_NOISE * drawn) - batch.frames
    total = batch.weight.sum() * difference.shape[1]
    error = (batch.weight * (difference.abs() + _SQUARE_WEIGHT * difference.square())).sum()
    edges = (batch.weight[..., 1:] * difference.diff(dim=4).abs()).sum()
    edges = edges + (batch.weight[..., 1:, :] * difference.diff(dim=3).abs()).sum()
    return (error + _EDGE_WEIGHT * edges) / total + _SCALE_WEIGHT * scale


class Trainer:
    """A model, its running average and its optimiser."""

    def __init__(self, model: TinyVAE, *, learning_rate: float, ema: float) -> None:
        self.model = model
        self.average = copy.deepcopy(model).requires_grad_(False).eval()
        self.step = 0
        self._learning_rate = learning_rate
        self._ema = ema
        self._trained = {n: p for n, p in model.named_parameters() if p.requires_grad}
        self._device = next(iter(self._trained.values())).device
        self._optimizer = torch.optim.Adam(
            self._trained.values(),
            lr=learning_rate,
            betas=(0.9, 0.99),
            fused=self._device.type == "cuda",
        )

    def train_step(self, batch: Batch, *, progress: float) -> Tensor:
        """Take one step; the learning rate falls linearly over the second half."""
        warm = min(1.0, (self.step + 1) / _WARM_UP_STEPS)
        rate = self._learning_rate * warm * min(1.0, max(0.01, 2 * (1 - progress)))
        for group in self._optimizer.param_groups:
            group["lr"] = rate
        noise = torch.Generator(self._device).manual_seed(SEED + self.step)
        with torch.autocast(self._device.type, torch.bfloat16, enabled=self._device.type == "cuda"):
            loss = loss_of(self.model, batch, noise=noise)
        self._optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self._trained.values(), 1.0)
        self._optimizer.step()
        self.step += 1
        with torch.no_grad():
            kept = min(self._ema, self.step / (10 + self.step))
            averages = dict(self.average.named_parameters())
            torch._foreach_lerp_(
                [averages[name] for name in self._trained], list(self._trained.values()), 1 - kept
            )
        return loss.detach()

    def save(self, path: Path, *, seconds: float) -> None:
        """Write a checkpoint."""
        averages = dict(self.average.named_parameters())
        tensors: dict[str, Tensor] = {}
        for name, parameter in self._trained.items():
            state = self._optimizer.state.get(parameter, {})
            kept = self._kept(name)
            tensors[f"weight.{name}"] = parameter[kept]
            tensors[f"average.{name}"] = averages[name][kept]
            if state:
                tensors[f"moment.{name}"] = state["exp_avg_sq"][kept].sqrt() * _MOMENT_SCALE
        notes = {"state": json.dumps({"step": self.step, "seconds": seconds})}
        save_checkpoint(path, tensors, notes=notes)

    def load(self, path: Path) -> float:
        """Continue from a checkpoint; return the seconds trained before."""
        tensors, notes = load_checkpoint(path)
        counters = json.loads(notes["state"])
        self.step = int(counters["step"])
        averages = dict(self.average.named_parameters())
        with torch.no_grad():
            for name, parameter in self._trained.items():
                kept = self._kept(name)
                parameter[kept] = tensors[f"weight.{name}"].to(parameter)
                averages[name][kept] = tensors[f"average.{name}"].to(parameter)
                if f"moment.{name}" in tensors:  # not yet, where only clips give a gradient
                    root = tensors[f"moment.{name}"].to(parameter) / _MOMENT_SCALE
                    self._optimizer.state[parameter] = self._moments(parameter, kept, root)
        return float(counters["seconds"])

    def _moments(
        self, parameter: Tensor, kept: tuple[slice, ...], root: Tensor
    ) -> dict[str, Tensor]:
        squares = torch.zeros_like(parameter)
        squares[kept] = root.square()
        counts_on = self._device if self._device.type == "cuda" else None  # as Adam's fused form
        return {
            "step": torch.tensor(float(self.step), device=counts_on),
            "exp_avg": torch.zeros_like(parameter),
            "exp_avg_sq": squares,
        }

    def _kept(self, name: str) -> tuple[slice, ...]:
        """Give the used part of a tensor: of a 2D convolution the last slice in time."""
        is_spatial = name in self.model.spatial_weights()
        return (slice(None), slice(None), slice(-1, None)) if is_spatial else (slice(None),)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add this stage's options to those of every stage."""
    parser.add_argument("--width", type=int, default=WIDTH, help="channels at full size")
    parser.add_argument("--pixels", type=int, default=1_600_000, help="drawn for each step")
    parser.add_argument("--learning-rate", type=float, default=2e-3)
    parser.add_argument("--ema", type=float, default=0.998)
    parser.add_argument("--clips", type=int, default=32, help="held-out clips of the last gate")


def run(arguments: argparse.Namespace) -> None:
    """Train within `arguments.minutes`, all included; write `vae/` of `arguments.out`."""
    began = time.monotonic()
    device = torch.device(arguments.device)
    torch.manual_seed(SEED)
    torch.backends.cudnn.benchmark = True
    compiled = torch.compile(activate, dynamic=True)
    model = TinyVAE(arguments.width, activate=compiled)
    trainer = Trainer(model.to(device), learning_rate=arguments.learning_rate, ema=arguments.ema)
    folder = arguments.out / "vae"
    checkpoint = folder / "checkpoint.safetensors"
    before = trainer.load(checkpoint) if arguments.resume and checkpoint.is_file() else 0.0
    limit = 60 * arguments.minutes
    spare, next_gate, said = 0.0, _FIRST_GATE, 0.0
    while (now := time.monotonic() - began) < limit - spare:
        progress = (before + now) / (before + limit)
        batch = draw_batch(trainer.step, progress=progress, pixels=arguments.pixels, device=device)
        loss = trainer.train_step(batch, progress=progress)
        if now - said > limit / 60:
            said = now
            _say(f"{now:.0f} s ({progress:.0%}): step {trainer.step}, loss {float(loss):.4f}")
        if progress > next_gate:
            next_gate += _GATE_EVERY
            trainer.save(checkpoint, seconds=before + now)
            judge(trainer, folder, num_clips=max(1, arguments.clips // 4))
            spare = 5 * (time.monotonic() - began - now)
    trainer.save(checkpoint, seconds=before + limit)
    gate = judge(trainer, folder, num_clips=arguments.clips)
    _say(f"{time.monotonic() - began:.0f} s: gate {'passed' if gate.passed else 'NOT passed'}")


def judge(trainer: Trainer, folder: Path, *, num_clips: int) -> Gate:
    """Publish the averaged weights and measure them; write both into the folder."""
    device = next(trainer.average.parameters()).device
    model = copy.deepcopy(trainer.average)
    with torch.backends.cudnn.flags(enabled=True, benchmark=False):
        publish(model, folder / "vae.safetensors", device=device)
        gate = evaluate(model, num_clips=num_clips, device=device)
    line = json.dumps({"step": trainer.step, "clips": num_clips, **asdict(gate)})
    with (folder / "gates.jsonl").open("a", encoding="utf-8") as log:
        log.write(line + "\n")
    _say(line)
    return gate


def _say(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()
