"""Compare the sampling loop with recorded runs of `generate` and `generate_infinitetalk`.

`engine.generate` runs every variant in the file with upstream's division into segments, and every
step is compared. Departures get rows of their own: the length of the video, overlapping boxes, a
pass saved.
"""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path

import torch
from torch import Tensor

from ...multitalk_core.errors import InputError
from ...multitalk_core.geometry import Box
from ...multitalk_core.inputs.masks import FACE_MARGIN, fit_masks, speaker_masks, to_tokens
from ...multitalk_core.method.segments import plan
from ...multitalk_core.model.dit import MultiTalkModel
from .dit import EMPTY_REGION, load_model
from .golden import GoldenFile, Row, largest_error, require_rows
from .sampler_run import Call, Chunk, Run, Variant, run, upstream_maps

TOLERANCE = 2e-4
TIMESTEP_TOLERANCE = 1e-3
VIDEO_TOLERANCE = 1e-4
WINDOW_TOLERANCE = 1e-9
"""Means in float64: only the order of the sum is free."""

DECISION = "differs by decision: "

_STORED_ONCE = {"video", "vae_encode_in", "vae_encode_in_frames", "clip_visual_input", "y"}

_PASS_NAMES = {
    (False, False): "pred_cond",
    (True, False): "pred_drop_text",
    (True, True): "pred_uncond",
    (False, True): "pred_drop_audio",
}


def compare(path: Path) -> list[Row]:
    """Run every variant of the file and compare all that was recorded of it."""
    file = GoldenFile(path)
    model = load_model(file)
    rows: list[Row] = []
    with torch.no_grad():
        for name in file.config["variants"]:
            rows += compare_variant(Variant(file, name), model)
    return require_rows(rows, file)


def compare_variant(variant: Variant, model: MultiTalkModel) -> list[Row]:
    """Compare one variant."""
    if variant.settings.get("teacache"):
        return [_departure(variant, "all", "TeaCache comes with the speed issue")]
    if not any(name.startswith(f"v.{variant.name}.") for name in variant.file.tensors):
        raise ValueError(f"{variant.file.path.name} records nothing of variant {variant.name!r}.")
    masks = upstream_masks(variant)
    try:
        with upstream_maps(model) if variant.num_speakers > 1 else nullcontext():
            seen = run(variant, model, masks=masks, dtype=torch.float32)
    except InputError as error:
        return [_departure(variant, "all", f"upstream goes on, we say: {error}")]
    groups = _Groups(variant)
    for number, chunk in enumerate(seen.chunks):
        _compare_chunk(groups, variant, chunk, number)
        groups.add("masks", fit_masks(masks, size=variant.size), f"chunk{number}.ref_target_masks")
    _compare_video(groups, variant, seen)
    return groups.rows() + _departures(variant, masks)


class _Groups:
    """Largest errors by group of one variant."""

    def __init__(self, variant: Variant) -> None:
        self.variant = variant
        self.found: dict[str, tuple[float, float]] = {}
        self.lost: dict[str, Row] = {}

    def recorded(self, name: str) -> Tensor | None:
        """Give a recorded tensor; some that equal the first variant's are stored only there."""
        first = next(iter(self.variant.file.config["variants"]))
        tensors = self.variant.file.tensors
        own = tensors.get(f"v.{self.variant.name}.{name}")
        if own is None and any(part in _STORED_ONCE for part in name.split(".")):
            return tensors.get(f"v.{first}.{name}")
        return own

    def add(self, group: str, ours: Tensor, name: str, *, tolerance: float = 0.0) -> None:
        """Compare with a recorded tensor, if the file has it."""
        theirs = self.recorded(name)
        if theirs is not None:
            self.put(group, ours, theirs, tolerance=tolerance)

    def put(self, group: str, ours: Tensor, theirs: Tensor, *, tolerance: float = 0.0) -> None:
        """Compare two tensors, unless upstream's is NaN."""
        if theirs.isnan().any():
            self.lost[group] = _departure(self.variant, group, "upstream gives NaN")
            return
        error = largest_error(ours, theirs)
        before = self.found.get(group, (0.0, tolerance))[0]
        worst = error if error != error else max(before, error)  # NaN stays
        self.found[group] = (before if before != before else worst, tolerance)

    def rows(self) -> list[Row]:
        """Give a row for each group."""
        return [
            Row(f"{self.variant.name}: {group}", error, tolerance)
            for group, (error, tolerance) in self.found.items()
        ] + list(self.lost.values())


def _compare_chunk(groups: _Groups, variant: Variant, chunk: Chunk, number: int) -> None:
    at = f"chunk{number}"
    full = chunk.steps(0)
    assert chunk.final_latents is not None and chunk.image_input is not None
    times = torch.tensor([call.timestep for call in full] + [0.0])
    groups.add("timesteps", times, f"{at}.timesteps", tolerance=TIMESTEP_TOLERANCE)
    _compare_noise(groups, variant, chunk, at)
    means = chunk.windows.double().mean(dim=(3, 4))
    groups.add("windows", means, f"{at}.audio_window_mean_cond", tolerance=WINDOW_TOLERANCE)
    shape = torch.tensor([1, *chunk.windows.shape[1:]])  # the last pass has one stream of zeros
    groups.add("window shape", shape, f"{at}.audio_window_shape_last")
    image = chunk.image_input[:, :, None]
    groups.add("CLIP input", image, f"{at}.clip_visual_input", tolerance=VIDEO_TOLERANCE)
    for i_input, video in enumerate(chunk.vae_inputs):
        _compare_vae_input(groups, video, at, i_input)
    groups.add("condition", full[0].condition, f"{at}.y")
    latents = torch.stack([call.latents for call in full] + [chunk.final_latents])
    groups.add("latents", latents, f"{at}.latents", tolerance=TOLERANCE)
    first_step = chunk.calls[: chunk.num_passes]
    if chunk.num_passes == variant.num_passes_upstream:
        flags = [[call.negative_text, call.silent, call.num_streams] for call in first_step]
        groups.add("passes", torch.tensor(flags).long(), f"{at}.flags_nulltext_zeroaudio_humans")
    for i_pass, call in enumerate(first_step):
        name = _PASS_NAMES[call.negative_text, call.silent]
        _compare_predictions(groups, chunk.steps(i_pass), f"{at}.{name}", name)


def _compare_noise(groups: _Groups, variant: Variant, chunk: Chunk, at: str) -> None:
    """Compare the first latents with the noise; the motion frames have noise of their own."""
    first = chunk.calls[0].latents
    noise, motion_noise = groups.recorded(f"{at}.noise"), None
    if at != "chunk0":
        motion_noise = groups.recorded(f"{at}.motion_noise")
    taken_over = 0 if motion_noise is None else motion_noise.shape[2]
    if variant.config.method == "infinitetalk":
        taken_over = max(taken_over, 1)
    elif motion_noise is not None:
        groups.put("motion noise", first[:, :taken_over], motion_noise[0])
    if noise is not None:
        groups.put("noise", first[:, taken_over:], noise[:, taken_over:])


def _compare_vae_input(groups: _Groups, video: Tensor, at: str, i_input: int) -> None:
    """Compare the VAE's input; the file leaves out trailing frames of zeros."""
    theirs = groups.recorded(f"{at}.vae_encode_in.{i_input}")
    counts = groups.recorded(f"{at}.vae_encode_in_frames.{i_input}")
    if theirs is None:
        return
    if counts is not None:
        groups.put("VAE input frames", torch.tensor(video.shape[1]), counts[0])
    stored = theirs.shape[1]
    whole = torch.cat([theirs, torch.zeros_like(video[:, stored:])], dim=1)
    groups.put("VAE input", video, whole, tolerance=VIDEO_TOLERANCE)


def _compare_predictions(groups: _Groups, calls: list[Call], name: str, group: str) -> None:
    theirs = groups.recorded(name)
    if theirs is None:
        return
    ours = torch.stack([call.velocity for call in calls])
    if len(theirs) != len(ours):  # the file keeps only the first and the last step
        ours = ours[[0, -1]]
    groups.put(group, ours, theirs, tolerance=TOLERANCE)


def _compare_video(groups: _Groups, variant: Variant, seen: Run) -> None:
    groups.add("video", seen.video, "video", tolerance=VIDEO_TOLERANCE)
    if variant.config.method == "infinitetalk":
        numbers = torch.tensor(seen.frame_numbers)
        groups.add("picture numbers", numbers, "cond_frame_indices_requested")


def upstream_masks(variant: Variant) -> Tensor:
    """Draw the masks as upstream does: its boxes give rows first and may overlap."""
    height, width = variant.photo_size
    if variant.num_speakers == 1:
        return torch.ones(3, height, width, dtype=torch.bool)
    boxes = variant.boxes
    if boxes is None:
        rows = int(height * FACE_MARGIN), int(height * (1 - FACE_MARGIN))
        half = width // 2
        starts = [int(half * FACE_MARGIN + offset) for offset in (0, half)]
        ends = [int(half * (1 - FACE_MARGIN) + offset) for offset in (0, half)]
        boxes = [[rows[0], start, rows[1], end] for start, end in zip(starts, ends, strict=True)]
    masks = torch.zeros(len(boxes), height, width, dtype=torch.bool)
    for mask, (top, left, bottom, right) in zip(masks, boxes, strict=True):
        mask[int(top) : int(bottom), int(left) : int(right)] = True
    return torch.cat([masks, ~masks.any(dim=0, keepdim=True)])


def _departures(variant: Variant, masks: Tensor) -> list[Row]:
    """Give a row for each departure of the product from the recorded run."""
    rows = []
    ours = plan(
        min(variant.max_frames, max(len(one) for one in variant.features)),
        segment_frames=variant.config.segment_frames,
        motion_frames=variant.config.motion_frames,
    )
    if ours.num_frames != variant.plan.num_frames:
        rows.append(
            _departure(
                variant,
                "length",
                f"{ours.num_frames} frames, as long as the sound, upstream gives "
                f"{variant.plan.num_frames}",
            )
        )
    if variant.num_speakers == 2:
        rows.append(_own_masks(variant, masks))
    if variant.config.audio_guidance == 1:
        rows.append(_departure(variant, "passes", "an audio guidance of 1 saves a pass"))
    if variant.num_speakers == 2 and variant.file.config["model"]["num_heads"] % 2:
        rows.append(_departure(variant, "heads", "all are averaged, upstream drops the odd one"))
    if variant.num_speakers == 2 and not to_tokens(fit_masks(masks, size=variant.size))[-1].any():
        rows.append(_departure(variant, "no background", EMPTY_REGION.removeprefix(DECISION)))
    return rows


def _own_masks(variant: Variant, masks: Tensor) -> Row:
    """Compare our masks from the same boxes; where boxes overlap, the later speaker wins."""
    if bool((masks[0] & masks[1]).any()):
        return _departure(variant, "own masks", "where boxes overlap the later speaker wins")
    boxes = [Box(left, top, right, bottom) for top, left, bottom, right in variant.boxes or []]
    try:
        own = speaker_masks(boxes or [None, None], photo=variant.photo_size)
    except InputError as error:
        return _departure(variant, "own masks", str(error))
    error = largest_error(own.float(), masks.float())
    return Row(f"{variant.name}: own masks", error, 0.0)


def _departure(variant: Variant, group: str, note: str) -> Row:
    infinite = float("inf")
    return Row(f"{variant.name}: {group}", infinite, infinite, DECISION + note)
