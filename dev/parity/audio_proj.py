"""Compare the audio projection with recorded runs of `AudioProjModel` (`audio_proj` files)."""

from __future__ import annotations

from pathlib import Path

import torch

from ...multitalk_core.config import AudioConfig
from ...multitalk_core.model.audio_tokens import (
    AudioProjection,
    first_frame,
    join_speakers,
    later_frames,
)
from ...multitalk_core.model.layers import TorchOps
from .golden import GoldenFile, Row, require_rows, row

TOLERANCE = 1e-5


@torch.no_grad()
def compare(path: Path) -> list[Row]:
    """Project every case's windows and compare the slots, the tokens and their joined form."""
    file = GoldenFile(path)
    rows = []
    for case in sorted(n.removesuffix(".audio") for n in file.tensors if n.endswith(".audio")):
        windows = file.get(f"{case}.audio")
        tokens = load_projection(file, case)(windows)
        slots = (-1, *windows.shape[-2:])
        ours = {
            "first": torch.unflatten(first_frame(windows), -1, slots),
            "latter": torch.unflatten(later_frames(windows), -1, slots),
            "out": tokens,
            "embedding_for_blocks": join_speakers(tokens),
        }
        for name, value in ours.items():
            full = f"{case}.{name}"
            if full in file.tensors:
                exact = name in ("first", "latter")
                tolerance = 0.0 if exact else TOLERANCE
                rows.append(row(full, value, file.get(full), tolerance=tolerance))
    return require_rows(rows, file)


def load_projection(file: GoldenFile, case: str) -> AudioProjection:
    """Build a case's projection with the sizes of its weights."""
    weights = file.weights(f"{case}.w.audio_proj.")
    layers, channels = file.get(f"{case}.audio").shape[-2:]
    token_dim = int(file.config["output_dim"])
    config = AudioConfig(
        layers=layers,
        channels=channels,
        hidden_dim=weights["proj2.weight"].shape[0],
        num_tokens=weights["proj3.weight"].shape[0] // token_dim,
        token_dim=token_dim,
        norm_tokens="norm.weight" in weights,
    )
    projection = AudioProjection(config, ops=TorchOps)
    projection.load_state_dict(weights)
    return projection
