"""Compare photo, masks, colours, schedule and adaptive guidance (`preprocess` files)."""

from __future__ import annotations

import re
from pathlib import Path

import torch
from torch import Tensor

from ...multitalk_core.config import ApgConfig
from ...multitalk_core.geometry import Size
from ...multitalk_core.inputs.masks import fit_masks
from ...multitalk_core.inputs.photo import prepare
from ...multitalk_core.method.color import match_color_, rgb_to_lab
from ...multitalk_core.method.guidance import Projection
from ...multitalk_core.method.schedule import shift_timestep
from .golden import GoldenFile, Row, require_rows, row

COLOR_TOLERANCE = 1e-4
FLAT_STD = 0.05
"""A Lab channel that varies less is scaled up so much that its rounding noise shows."""
FLAT_FRAME = (
    "differs by decision: a channel that hardly varies is no ground, upstream spreads its noise"
)
TIMESTEP_TOLERANCE = 1e-3
GUIDANCE_TOLERANCE = 1e-5


def compare(path: Path) -> list[Row]:
    """Compare every group the file holds."""
    file = GoldenFile(path)
    rows = [*_crops(file), *_colors(file), *_schedules(file), *_projections(file)]
    return require_rows(rows, file)


def _cases(file: GoldenFile, pattern: str) -> list[str]:
    found = (re.fullmatch(pattern, name) for name in file.tensors)
    return sorted({match[1] for match in found if match})


def _crops(file: GoldenFile) -> list[Row]:
    rows = []
    for case in _cases(file, r"(crop\.[^.]+)\.target"):
        size = Size(*file.get(f"{case}.target").tolist())
        if f"{case}.image_u8" in file.tensors:
            image = prepare(file.get(f"{case}.image_u8"), size=size)
            pixels = ((image + 1) * 127.5).round().to(torch.uint8)
            rows.append(row(f"{case}.image", pixels, file.get(f"{case}.image_out_u8"), tolerance=0))
        if f"{case}.mask" in file.tensors:
            masks = fit_masks(file.get(f"{case}.mask"), size=size)
            rows.append(row(f"{case}.mask", masks, file.get(f"{case}.mask_latent"), tolerance=0))
    return rows


def _colors(file: GoldenFile) -> list[Row]:
    """Compare colour correction; frames of rounding noise get their own row."""
    rows = []
    for strength in _cases(file, r"color\.out\.(.+)"):
        frames, theirs = file.get("color.in"), file.get(f"color.out.{strength}")
        ours = match_color_(frames.clone(), file.get("color.ref"), strength=float(strength))
        group = f"color.strength_{strength}"
        errors = (ours - theirs).abs().amax(dim=(0, 1, 3, 4))
        flat = torch.tensor([_is_flat(frame) for frame in frames[0].unbind(dim=1)])
        noise = flat & (errors > COLOR_TOLERANCE)
        if not noise.all():
            rows.append(Row(group, float(errors[~noise].max()), COLOR_TOLERANCE))
        if noise.any():
            error = float(errors[noise].max())
            rows.append(Row(f"{group} (flat frames)", error, float("inf"), FLAT_FRAME))
    return rows


def _is_flat(frame: Tensor) -> bool:
    """Tell whether a Lab channel of a frame `(3, H, W)` in [-1, 1] hardly varies."""
    lab = rgb_to_lab(((frame + 1) / 2).clamp(0, 1))
    return bool((lab.std(dim=(1, 2), correction=0) < FLAT_STD).any())


def _schedules(file: GoldenFile) -> list[Row]:
    rows = []
    for shift in _cases(file, r"timestep_transform\.shift(.+)\.out"):
        given = file.get("timestep_transform.in").tolist()
        ours = torch.tensor([shift_timestep(timestep, shift=float(shift)) for timestep in given])
        theirs = file.get(f"timestep_transform.shift{shift}.out")
        rows.append(row(f"timesteps.shift_{shift}", ours, theirs, tolerance=TIMESTEP_TOLERANCE))
    return rows


def _projections(file: GoldenFile) -> list[Row]:
    """Compare adaptive projected guidance, called once per recorded step."""
    rows = []
    for case in _cases(file, r"(apg\.[^.]+)\.out"):
        threshold, momentum = file.get(f"{case}.threshold_momentum").tolist()
        project = Projection(ApgConfig(momentum=momentum, norm_threshold=threshold))
        steps = zip(file.get(f"{case}.diff"), file.get(f"{case}.cond"), strict=True)
        ours = torch.stack([project(difference, full) for difference, full in steps])
        rows.append(row(case, ours, file.get(f"{case}.out"), tolerance=GUIDANCE_TOLERANCE))
    return rows
