"""Stage `decoder`: a second training of the autoencoder's decoder, for smooth frame changes.

Every fourth frame starts a new latent frame and changes more than its neighbours. At a seam between
segments the motion frames have been through the autoencoder twice. The loss therefore includes the
change between frames, and every third step decodes latents of a second encoding. The encoder is
frozen, so latents, base and adapter stay valid.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from .vae import TinyVAE, load_vae
from .vae_gate import evaluate
from .vae_training import Batch, draw_clips

SEED = 777_000
_FRAMES = 33
_CROPS_UNTIL = 0.70
_EDGE_WEIGHT, _SQUARE_WEIGHT, _CHANGE_WEIGHT = 0.5, 2.0, 4.0
_LATENT_NOISE = 0.12
_WARM_UP_STEPS = 100
_AVERAGE = 0.995
_NOT_TRAINED = "middle.1"  # attention


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add this stage's options to those of every stage."""
    parser.add_argument("--batch", type=int, default=12, help="clips of a step; whole ones a third")
    parser.add_argument("--learning-rate", type=float, default=8e-4)
    parser.add_argument("--clips", type=int, default=16, help="held-out clips of the gate")


def run(arguments: argparse.Namespace) -> None:
    """Train for `arguments.minutes` and replace `vae/vae.safetensors` of `arguments.out`."""
    device = torch.device(arguments.device)
    torch.manual_seed(SEED)
    path = arguments.out / "vae" / "vae.safetensors"
    model = load_vae(path).to(device)
    trained = {n: p for n, p in model.decoder.named_parameters() if _NOT_TRAINED not in n}
    for parameter in trained.values():
        parameter.requires_grad_(True)
    optimiser = torch.optim.Adam(
        trained.values(), lr=arguments.learning_rate, betas=(0.9, 0.99), fused=device.type == "cuda"
    )
    average = [parameter.detach().clone() for parameter in trained.values()]
    began, limit, step = time.monotonic(), 60 * arguments.minutes, 0
    while (progress := (time.monotonic() - began) / limit) < 1:
        rate = arguments.learning_rate * min(1, (step + 1) / _WARM_UP_STEPS)
        optimiser.param_groups[0]["lr"] = rate * min(1, max(0.01, 2 * (1 - progress)))
        is_crop = progress < _CROPS_UNTIL
        count = arguments.batch if is_crop else max(1, arguments.batch // 3)
        loss = _loss(model, step=step, count=count, is_crop=is_crop, device=device)
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained.values(), 1.0)
        optimiser.step()
        step += 1
        with torch.no_grad():
            kept = min(_AVERAGE, step / (10 + step))
            torch._foreach_lerp_(average, [p.detach() for p in trained.values()], 1 - kept)
    _publish(model, list(trained.values()), average, path)
    gate = evaluate(load_vae(path).to(device), num_clips=arguments.clips, device=device)
    sys.stdout.write(f"{step} steps; {gate}\n")


def change_loss(decoded: Tensor, batch: Batch) -> Tensor:
    """Compare frames, their edges, and how each differs from the one before."""
    weight = batch.weight
    difference = decoded.float() - batch.frames
    error = (weight * (difference.abs() + _SQUARE_WEIGHT * difference.square())).sum()
    edges = (weight[..., 1:] * difference.diff(dim=4).abs()).sum()
    edges = edges + (weight[..., 1:, :] * difference.diff(dim=3).abs()).sum()
    change = (weight[:, :, 1:] * difference.diff(dim=2).abs()).sum()
    return (error + _EDGE_WEIGHT * edges + _CHANGE_WEIGHT * change) / (3 * weight.sum())


def _loss(model: TinyVAE, *, step: int, count: int, is_crop: bool, device: torch.device) -> Tensor:
    batch = draw_clips(
        SEED + step,
        count=count,
        people=1 + step % 2,
        num_frames=_FRAMES,
        is_crop=is_crop,
        device=device,
    )
    with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
        with torch.no_grad():
            latents = model.encode(batch.frames)
            if step % 3 == 0:  # as motion frames come back
                latents = model.encode(model.decode(latents).clamp(-1, 1))
            scale = _LATENT_NOISE * torch.rand((count, 1, 1, 1, 1), device=device)
            latents = latents + scale * torch.randn_like(latents)
        decoded = model.decode(latents)
    return change_loss(decoded, batch)


@torch.no_grad()
def _publish(model: TinyVAE, trained: list[Tensor], average: list[Tensor], path: Path) -> None:
    """Write the averaged weights, fp16; the encoder's are unchanged."""
    for parameter, value in zip(trained, average, strict=True):
        parameter.copy_(value)
    named = dict(model.named_parameters())
    for name in model.spatial_weights():
        if name.startswith("decoder"):
            named[name][:, :, :-1] = 0
    stored = {n: v.half().contiguous().cpu() for n, v in sorted(model.state_dict().items())}
    draft = path.with_suffix(".part")
    save_file(stored, draft)
    draft.replace(path)
