"""Compare voices and audio features with recorded ones (`wav2vec` files)."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import Wav2Vec2Config, Wav2Vec2Model

from ...multitalk_core.inputs.features import (
    audio_features,
    conv_features,
    load_wav2vec2,
    normalized_track,
    num_feature_frames,
)
from ...multitalk_core.inputs.timeline import Mode, arrange
from ...multitalk_core.inputs.voices import normalize_loudness
from .golden import GoldenFile, Row, require_rows, row

LOUDNESS_TOLERANCE = 1e-6
FEATURE_TOLERANCE = 3e-5

_MODES: dict[str, Mode] = {"add": "in_turn", "para": "together"}


def compare(path: Path) -> list[Row]:
    """Compare every group the file holds."""
    file = GoldenFile(path)
    rows = [*_loudness(file), *_timelines(file), *_normalized(file)]
    for variant in sorted({match[1] for match in _matches(file, r"(\w+)\.out\.embedding\w+")}):
        rows += _features(file, variant)
    return require_rows(rows, file)


def load_variant(file: GoldenFile, variant: str) -> Wav2Vec2Model:
    """Build the model of a variant (`base`, `stable` ...) with the sizes the file states."""
    stated: dict[str, Any] | None = file.config.get("wav2vec_config", {}).get(variant)
    config = None
    if stated is not None:
        config = Wav2Vec2Config(**{**stated, "mask_time_prob": 0.0, "mask_feature_prob": 0.0})
    return load_wav2vec2(
        file.weights(f"{variant}.w."), num_heads=None, source=file.path.name, config=config
    )


def _matches(file: GoldenFile, pattern: str) -> Iterator[re.Match[str]]:
    for name in sorted(file.tensors):
        match = re.fullmatch(pattern, name)
        if match:
            yield match


def _loudness(file: GoldenFile) -> list[Row]:
    return [
        row(
            f"loudness.{match[1]}",
            torch.from_numpy(normalize_loudness(_wave(file, match[1]).numpy(), name=match[1])),
            file.get(match[0]),
            tolerance=LOUDNESS_TOLERANCE,
        )
        for match in _matches(file, r"out\.loudness_norm(\w+)")
    ]


def _wave(file: GoldenFile, number: str) -> Tensor:
    return file.get(f"in.wave{number}")


def _timelines(file: GoldenFile) -> list[Row]:
    """Compare the tracks of two voices; a voice `None` is silence as long as the other one."""
    rows = []
    for match in _matches(file, r"out\.prepare\.((add|para)_(None|\d)(None|\d))\.person1"):
        numbers = match[3], match[4]
        voices = [file.tensors.get(f"out.loudness_norm{number}") for number in numbers]
        length = max(len(voice) for voice in voices if voice is not None)
        timeline = arrange(
            [torch.zeros(length).double() if voice is None else voice for voice in voices],
            mode=_MODES[match[2]],
            starts=(0.0, 0.0),
        )
        first, second = timeline.tracks
        for name, track in (("person1", first), ("person2", second), ("sum", first + second)):
            theirs = file.get(f"out.prepare.{match[1]}.{name}")
            rows.append(
                row(f"timeline.{match[1]}.{name}", track, theirs, tolerance=LOUDNESS_TOLERANCE)
            )
    return rows


def _normalized(file: GoldenFile) -> list[Row]:
    return [
        row(
            f"normalized.{match[1]}",
            normalized_track(file.get(f"out.loudness_norm{match[1]}")),
            file.get(match[0]),
            tolerance=FEATURE_TOLERANCE,
        )
        for match in _matches(file, r"mid\.feature_extractor_input_values(\w+)")
    ]


def _features(file: GoldenFile, variant: str) -> list[Row]:
    model = load_variant(file, variant)
    rows = []
    for match in _matches(file, rf"{variant}\.(mid|out)\.(\w+)"):
        theirs = file.get(match[0])
        found = [
            row(
                f"{variant}.{match[2]}",
                _recorded(model, match[2], track),
                theirs,
                tolerance=FEATURE_TOLERANCE,
            )
            for track in _tracks(file, match[2])
        ]
        rows.append(min(found, key=lambda one: one.error))
    return rows


def _recorded(model: Wav2Vec2Model, name: str, track: Tensor) -> Tensor:
    """Give upstream's recorded values of a name."""
    if name.startswith("embedding"):
        return audio_features(model, track)
    num_frames = num_feature_frames(len(track)) if name.startswith("interp") else None
    with torch.no_grad():
        return conv_features(model, normalized_track(track), num_frames=num_frames)


def _tracks(file: GoldenFile, name: str) -> list[Tensor]:
    """Give the tracks that a recording may hold: one voice, or one person's of any two voices.

    A recording of two voices does not say which two.
    """
    match = re.fullmatch(r"embedding_(add|para)_(person\d)", name)
    if not match:
        number = re.sub(r"^(embedding|conv_features|interp_features)", "", name)
        return [file.get(f"out.loudness_norm{number}")]
    tracks = _matches(file, rf"out\.prepare\.{match[1]}_\w+\.{match[2]}")
    found = [file.get(track[0]) for track in tracks]
    if not found:
        raise KeyError(f"{file.path.name} has no track for {name!r}")
    return found
