"""Compare rotary positions, the reference map and audio attention (`lrope` files).

One departure gets a row of its own: upstream's reference map drops the last head of an odd number.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor, nn

from ...multitalk_core.config import AudioConfig, ModelConfig
from ...multitalk_core.geometry import GridSize
from ...multitalk_core.model.attention import AudioAttention, reference_map
from ...multitalk_core.model.dit import time_features
from ...multitalk_core.model.layers import TorchOps
from ...multitalk_core.model.lrope import (
    audio_positions,
    axis_frequencies,
    grid_rotation,
    label_positions,
    label_rotation,
    rotate,
    scale_to_range,
)
from .dit import ODD_HEAD, POSITION_TOLERANCE, departure, known_row, map_tolerance, upstream_map
from .golden import GoldenFile, Row, require_rows, row

TOLERANCE = 1e-5
CPU = torch.device("cpu")

Pairs = Iterator[tuple[str, Tensor]]


@torch.no_grad()
def compare(path: Path) -> list[Row]:
    """Compute every recorded group that the file holds."""
    file = GoldenFile(path)
    rows = [
        row(name, ours, file.get(name), tolerance=_tolerance(name))
        for group in (_time, _grid, _labels, _scales, _attention)
        for name, ours in group(file)
        if name in file.tensors
    ]
    return require_rows(rows + _maps(file), file)


def _tolerance(name: str) -> float:
    return POSITION_TOLERANCE if name.endswith("_pos") or name.startswith("nas.") else TOLERANCE


def _cases(file: GoldenFile, kind: str) -> list[str]:
    """Give the prefixes of a kind's cases, such as `rope1d.32`."""
    starts = {n.split(".")[1] for n in file.tensors if n.startswith(f"{kind}.")}
    return [f"{kind}.{start}" for start in sorted(starts)]


def _time(file: GoldenFile) -> Pairs:
    for name in [n for n in file.tensors if n.startswith("sinus.out")]:
        width = file.get(name).shape[-1]
        yield name, time_features(file.get("sinus.t"), width=width)


def _grid(file: GoldenFile) -> Pairs:
    for case in _cases(file, "rope3d"):
        x = file.get(f"{case}.x")
        grid = GridSize(*file.get(f"{case}.grid")[0].tolist())
        rotation = grid_rotation(grid, head_dim=x.shape[-1], device=CPU)
        yield f"{case}.out", rotate(x, rotation)
        frequencies = torch.cat(axis_frequencies(x.shape[-1]))
        for suffix, positions in (("first32", torch.arange(32)), ("1000", torch.tensor(1000))):
            angles = positions.double().unsqueeze(-1) * frequencies
            yield f"{case}.freqs_re_{suffix}", angles.cos()
            yield f"{case}.freqs_im_{suffix}", angles.sin()


def _labels(file: GoldenFile) -> Pairs:
    for case in _cases(file, "rope1d"):
        x, positions = file.get(f"{case}.x"), file.get(f"{case}.pos")
        rotation = label_rotation(positions, head_dim=x.shape[-1])
        yield f"{case}.out", rotate(x.transpose(1, 2), rotation).transpose(1, 2)


def _scales(file: GoldenFile) -> Pairs:
    for case in _cases(file, "nas"):
        if case == "nas.in":
            continue
        # the constant case has its own input and the second speaker's range
        target = file.tensors.get(f"{case}.target", torch.tensor([20.0, 24.0]))
        values = file.tensors.get(f"{case}.in", file.tensors.get("nas.in"))
        if values is not None:
            low, high = target.tolist()
            yield f"{case}.out", scale_to_range(values, low=low, high=high)


def _attention(file: GoldenFile) -> Pairs:
    if "mattn.x" not in file.tensors:
        return
    sizes = file.config["mattn"]
    config = ModelConfig(dim=sizes["dim"], num_heads=sizes["heads"])
    audio = AudioConfig(token_dim=sizes["enc_dim"])
    module = AudioAttention(config, audio, ops=TorchOps)
    module.load_state_dict(file.weights("mattn.w."))
    x, context = file.get("mattn.x"), file.get("mattn.enc")
    labels = label_positions(file.get("mattn.map")).unsqueeze(0)
    frames, num_tokens = context.shape[1:3]
    yield "mattn.q_pos", labels[0]
    yield "mattn.k_pos", audio_positions(num_tokens // 2, device=CPU).repeat(frames)
    for end, given in (("in", None), ("out", labels)):
        q, k, _ = module.project(x, context, labels=given)
        yield f"mattn.q_{end}", q.transpose(1, 2)
        yield f"mattn.k_{end}", k.flatten(1, 2).transpose(1, 2)
    yield "mattn.out_single", module(x, context, norm=nn.Identity())
    yield "mattn.out_two", module(x, context, norm=nn.Identity(), labels=labels)


def _maps(file: GoldenFile) -> list[Row]:
    rows = []
    for case in _cases(file, "attnmap"):
        q, k, masks = (file.get(f"{case}.{name}") for name in ("q", "k", "masks"))
        theirs = file.get(f"{case}.out")
        ours = upstream_map(q, k, token_masks=masks)[0]
        rows.append(known_row(case, ours, theirs, tolerance=map_tolerance(theirs)))
        if q.shape[2] % 2:
            ours = reference_map(q, k, token_masks=masks)[0]
            name = f"{case} (all heads)"
            rows.append(departure(name, ours, theirs, note=ODD_HEAD))
    return rows
