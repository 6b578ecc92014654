"""The video autoencoder of the command (diffusers' class): one segment to latents and back."""

from __future__ import annotations

from collections.abc import Callable

import torch
from diffusers import AutoencoderKLWan
from torch import Tensor

from ....standalone.vae import WanVAE
from .bench import Bench, log
from .measure import peak, start_peak, timed
from .report import Column, Table

TITLE = "the video autoencoder, one segment"
COLUMNS = (
    Column("what", "what"),
    Column("size", "frames"),
    Column("seconds", "s"),
    Column("peak", "peak, GB", 2, 1e-9),
)


def measure(bench: Bench, table: Table) -> None:
    """Time the model alone, then with the moves of its weights, as the command works."""
    with torch.device(bench.device):
        model = AutoencoderKLWan(base_dim=bench.scale.vae_dim, z_dim=16)
    model = model.to(bench.dtype).requires_grad_(False).eval()
    frames, height, width = bench.scale.latent
    video = bench.normal(1, 3, bench.scale.num_frames, 8 * height, 8 * width).clamp(-1, 1)
    latents = bench.normal(1, 16, frames, height, width)
    moving = WanVAE(model, device=bench.device)
    calls: dict[str, Callable[[], Tensor]] = {
        "encode": lambda: model.encode(video).latent_dist.mode(),
        "decode": lambda: model.decode(latents).sample,
        "encode, moving the weights to the device and back": lambda: moving.encode(video),
        "decode, moving the weights to the device and back": lambda: moving.decode(latents),
    }
    for what, call in calls.items():
        if bench.late():
            table.notes.append(f"The time limit left out: {what}.")
            continue
        log(f"vae: {what}")
        call()
        start_peak(bench.device)
        seconds = timed(call, device=bench.device, least=bench.repeats, most=bench.repeats)
        size = f"{8 * width}x{8 * height}x{bench.scale.num_frames}"
        table.add(what=what, size=size, seconds=seconds, peak=peak(bench.device))
