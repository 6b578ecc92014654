"""Photo, masks, colours, schedule and adaptive guidance against files of the kind `preprocess`."""

from __future__ import annotations

import re
from pathlib import Path

import torch

from ...multitalk_core.color import match_color
from ...multitalk_core.config import ApgConfig
from ...multitalk_core.geometry import Size
from ...multitalk_core.guidance import Projection
from ...multitalk_core.image import prepare
from ...multitalk_core.masks import fit_masks
from ...multitalk_core.schedule import shift_timestep
from .golden import GoldenFile, Row, require_rows, row

COLOR_TOLERANCE = 1e-4
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
    return [
        row(
            f"color.strength_{strength}",
            match_color(file.get("color.in"), file.get("color.ref"), strength=float(strength)),
            file.get(f"color.out.{strength}"),
            tolerance=COLOR_TOLERANCE,
        )
        for strength in _cases(file, r"color\.out\.(.+)")
    ]


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
