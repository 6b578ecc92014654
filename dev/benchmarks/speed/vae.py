"""The video autoencoder of the command (diffusers' class): one segment to latents and back."""

from __future__ import annotations

from collections.abc import Callable

import torch
from diffusers import AutoencoderKLWan
from torch import Tensor

from ....standalone.vae import WanVAE
from .bench import Bench, log
from .measure import peak_memory, timed
from .report import Column, Table

TITLE = "the video autoencoder, one segment"
COLUMNS = (
    Column("what", "what"),
    Column("size", "frames"),
    Column("seconds", "s"),
    Column("peak", "peak, GB", 2, 1e-9),
)


def measure(bench: Bench, table: Table) -> None:
    """Time the model on the device, then as the command uses it."""
    with torch.device(bench.device):
        model = AutoencoderKLWan(base_dim=bench.scale.vae_dim, z_dim=16)
    model = model.to(bench.dtype).requires_grad_(False).eval()
    frames, height, width = bench.scale.latent
    video = bench.normal(1, 3, bench.scale.num_frames, 8 * height, 8 * width).clamp(-1, 1)
    latents = bench.normal(1, 16, frames, height, width)
    visitor = WanVAE(model, device=bench.device)
    calls: dict[str, Callable[[], Tensor]] = {
        "encode": lambda: model.encode(video).latent_dist.mode(),
        "decode": lambda: model.decode(latents).sample,
        "encode, with the weights' way to the device and back": lambda: visitor.encode(video),
        "decode, with the weights' way to the device and back": lambda: visitor.decode(latents),
    }
    for what, call in calls.items():
        if bench.late():
            table.notes.append(f"The time limit left out: {what}.")
            continue
        log(f"vae: {what}")
        call()
        with peak_memory(bench.device) as peak:
            seconds = timed(call, device=bench.device, least=bench.repeats, most=bench.repeats)
        size = f"{8 * width}x{8 * height}x{bench.scale.num_frames}"
        table.add(what=what, size=size, seconds=seconds, peak=peak.bytes)
