"""The rows of the table, each with its bound, measured on held-out people and voices."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from ...multitalk_core.geometry import FRAME_STRIDE
from ..train_tiny.mouth import correlation, opening
from . import measures
from .scenes import SEED, DrawnPhoto, Utterance, draw_scenes
from .system import MATCHED, SAMPLING, SEGMENT_FRAMES, EqualLabels, Rewritten, System

LONG_FRAMES = 117
"""Four segments."""
START = 5
"""From here on a mouth is compared: it was shut in the photo, and voices begin in mid-word."""
_SEAMS = (33, 61, 89)
"""First frames of the later ones, with 5 motion frames."""
_LATER = 80
"""The frame whose face is compared with the photo's."""
_OTHERS = 60
"""Faces it must not look like."""


class Row(NamedTuple):
    """One measured figure.

    Attributes:
        name: What was measured.
        value: The figure.
        bound: The bound as text; empty if there is none.
        reached: Whether the figure meets it.
        count: Videos or mouths it was measured on.
    """

    name: str
    value: float
    bound: str
    reached: bool
    count: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Material:
    """Input of the videos.

    Attributes:
        models: Folder of the set.
        singles: Photos of one person.
        pairs: Photos of two people.
        voices: At least two.
    """

    models: Path
    singles: list[DrawnPhoto]
    pairs: list[DrawnPhoto]
    voices: list[Utterance]

    def voice(self, number: int) -> Utterance:
        """Give a voice; after the last comes the first again."""
        return self.voices[number % len(self.voices)]


Rows = Callable[[System, Material], list[Row]]


def at_least(name: str, value: float, bound: float, count: int) -> Row:
    """Give the row of a figure with a lower bound."""
    return Row(name, value, f"at least {bound:g}", value >= bound, count)


def at_most(name: str, value: float, bound: float, count: int) -> Row:
    """Give the row of a figure with an upper bound."""
    return Row(name, value, f"at most {bound:g}", value <= bound, count)


def follow(video: Tensor, mouth: Tensor, voice: Utterance, *, start: int = START) -> float:
    """Give the correlation of a mouth in a video with a voice, starting at a frame."""
    return _agree(opening(video, mouth), voice, start=start)


def _agree(measured: Tensor, voice: Utterance, *, start: int = START) -> float:
    return correlation(measured[start:], voice.opening[start : len(measured)])


def one_speaker(system: System, material: Material) -> list[Row]:
    """The mouth of one person follows the voice, and no other voice."""
    own, whole, other, lags, matched = [], [], [], [], []
    for number, scene in enumerate(material.singles):
        voice = material.voice(number)
        video = system.film(scene, [voice], num_frames=SEGMENT_FRAMES, seed=number, config=MATCHED)
        matched.append(follow(video, scene.mouths[0], voice))
        video = system.film(scene, [voice], num_frames=SEGMENT_FRAMES, seed=number)
        measured = opening(video, scene.mouths[0])
        own.append(_agree(measured, voice))
        whole.append(_agree(measured, voice, start=0))
        other += [_agree(measured, one) for one in material.voices if one is not voice]
        lags.append(measures.best_lag(measured[START:], voice.opening[START:SEGMENT_FRAMES]))
    count = len(own)
    near = sum(abs(lag) < 2 for lag in lags) / count
    shut = "one speaker: median correlation, counting the photo's shut mouth"
    return [
        at_least("one speaker: median correlation", statistics.median(own), 0.88, count),
        Row(shut, statistics.median(whole), "", True, count),
        Row(
            "one speaker: median correlation, with colour match",
            statistics.median(matched),
            "",
            True,
            count,
        ),
        at_least("one speaker: best at lag 0", lags.count(0) / count, 0.9, count),
        at_least("one speaker: best within 1 frame", near, 1, count),
        at_most(
            "one speaker: with any other voice", abs(statistics.median(other)), 0.1, len(other)
        ),
    ]


def no_voice(system: System, material: Material) -> list[Row]:
    """A mouth stays closed in silence, and does not move if the audio strength is 0."""
    silence = Utterance(track=torch.zeros(5 * 16000), opening=torch.zeros(125))
    unheard = replace(SAMPLING, audio_strength=0.0)
    deviations, strays = [], []
    for number, scene in enumerate(material.singles):
        video = system.film(scene, [silence], num_frames=SEGMENT_FRAMES, seed=number)
        deviations.append(float(opening(video, scene.mouths[0]).std()))
        voice = material.voice(number)
        video = system.film(scene, [voice], num_frames=SEGMENT_FRAMES, seed=number, config=unheard)
        strays.append(follow(video, scene.mouths[0], voice))
    count = len(strays)
    return [
        at_most("silence: median deviation", statistics.median(deviations), 0.03, count),
        at_most("audio strength 0: correlation", abs(statistics.fmean(strays)), 0.1, count),
    ]


class _Pair(NamedTuple):
    own: list[float]
    cross: list[float]
    voices: list[float]  # how the voices themselves agree


def _film_pairs(
    system: System, material: Material, *, places: tuple[int, int] | None = None
) -> _Pair:
    """Film pairs; speaker 1 is on the left, unless `places` says otherwise."""
    own, cross, alike = [], [], []
    for number, scene in enumerate(material.pairs):
        voices = [material.voice(2 * number), material.voice(2 * number + 1)]
        video = system.film(scene, voices, num_frames=SEGMENT_FRAMES, places=places, seed=number)
        alike.append(_agree(voices[0].opening[:SEGMENT_FRAMES], voices[1]))
        for speaker, place in enumerate(places or (0, 1)):
            own.append(follow(video, scene.mouths[place], voices[speaker]))
            cross.append(follow(video, scene.mouths[place], voices[1 - speaker]))
    return _Pair(own, cross, alike)


def two_speakers(system: System, material: Material) -> list[Row]:
    """Each of two mouths follows its own voice; swapped masks swap the mouths."""
    default = _film_pairs(system, material)
    swapped = _film_pairs(system, material, places=(1, 0))
    count = len(default.own)
    above = sum(a > b for a, b in zip(default.own, default.cross, strict=True)) / count
    cross, swapped_cross = (abs(statistics.median(pair.cross)) for pair in (default, swapped))
    chance = abs(statistics.median(default.voices))
    return [
        at_least("two speakers: own voice", statistics.median(default.own), 0.82, count),
        at_most("two speakers: the other's voice", cross, 0.1, count),
        at_least("two speakers: own above other", above, 0.98, count),
        at_least("masks swapped: own voice", statistics.median(swapped.own), 0.75, count),
        at_most("masks swapped: the other's voice", swapped_cross, 0.1, count),
        Row("two speakers: their voices with each other", chance, "", True, len(default.voices)),
    ]


def equal_labels(system: System, material: Material) -> list[Row]:
    """With equal labels voices and people cannot be matched: L-RoPE matches them."""
    whole = system.transformer
    system.transformer = EqualLabels(whole)
    try:
        pair = _film_pairs(system, material)
    finally:
        system.transformer = whole
    lead = statistics.fmean(pair.own) - statistics.fmean(pair.cross)
    return [at_most("equal labels: own minus other", lead, 0.15, len(pair.own))]


def painted_wall(system: System, material: Material) -> list[Row]:
    """A prompt that names another wall changes the wall; its own prompt does not."""
    gone, stayed = [], []
    for number, scene in enumerate(material.singles):
        start = measures.wall_colour(scene.photo.permute(2, 0, 1) / 255)
        for found, prompt in ((gone, scene.other_wall), (stayed, scene.prompt)):
            video = system.film(
                scene,
                [material.voice(number)],
                num_frames=SEGMENT_FRAMES,
                seed=number,
                prompt=prompt,
            )
            colour = measures.wall_colour(video[:, -1])
            found.append(measures.towards(colour, start=start, goal=scene.other_colour))
    count = len(gone)
    return [
        at_least("another wall in the prompt: way to it", statistics.median(gone), 0.5, count),
        at_most("own wall in the prompt: way to it", statistics.median(stayed), 0.2, count),
    ]


def long_video(system: System, material: Material) -> list[Row]:
    """Four segments: seams, colours, face and lips stay good to the end."""
    others = draw_scenes(_OTHERS, people=1, seed=SEED + 1)
    strangers = torch.stack([_photo_face(other) for other in others])
    seams, latents, drift, first, last, nearer = [], [], [], [], [], []
    for number, scene in enumerate(material.singles):
        voice = material.voice(number)
        video = system.film(scene, [voice], num_frames=LONG_FRAMES, seed=number, config=MATCHED)
        seams += measures.seam_ratios(video, list(_SEAMS))
        latents += measures.seam_ratios(video, list(_SEAMS), every=FRAME_STRIDE)
        photo = scene.photo.permute(2, 0, 1) / 255
        drift.append(measures.colour_difference(video[:, -1], photo))
        measured = opening(video, scene.mouths[0])
        expected = voice.opening[:LONG_FRAMES]
        first.append(correlation(measured[START : _SEAMS[0]], expected[START : _SEAMS[0]]))
        last.append(correlation(measured[_SEAMS[-1] :], expected[_SEAMS[-1] :]))
        later = measures.face_signature(video[:, _LATER], scene.faces[0])
        nearer.append(measures.nearer_than(later, _photo_face(scene), strangers))
    count = len(drift)
    sync = statistics.median(first) - statistics.median(last)
    like = "long video: the same to other first frames of a latent"
    return [
        at_most("long video: change at seams", statistics.median(seams), 1.5, len(seams)),
        Row(like, statistics.median(latents), "", True, len(latents)),
        at_most("long video: colour drift, delta E", statistics.median(drift), 3, count),
        at_most("long video: sync lost by the last segment", sync, 0.05, count),
        at_least("identity: other faces farther", statistics.fmean(nearer), 0.95, count),
    ]


def unmatched_colours(system: System, material: Material) -> list[Row]:
    """The colour drift of a long video without colour matching."""
    drift = []
    for number, scene in enumerate(material.singles):
        video = system.film(scene, [material.voice(number)], num_frames=LONG_FRAMES, seed=number)
        photo = scene.photo.permute(2, 0, 1) / 255
        drift.append(measures.colour_difference(video[:, -1], photo))
    figure = statistics.median(drift)
    return [Row("long video: colour drift without colour match", figure, "", True, len(drift))]


def quantised(system: System, material: Material) -> list[Row]:
    """The lips follow as well with quantised weights."""
    found = {"Q8_0": _lips(system, material)}
    for type in ("bf16", "Q4_K_M"):
        with Rewritten(material.models, type) as base:
            other = System(
                material.models, device=str(system.device), dtype=system.dtype, base=base
            )
            found[type] = _lips(other, material)
    count = len(material.singles)
    return [
        at_most(f"{type}: correlation lost to bf16", found["bf16"] - found[type], 0.03, count)
        for type in ("Q8_0", "Q4_K_M")
    ]


def _lips(system: System, material: Material) -> float:
    found = []
    for number, scene in enumerate(material.singles):
        voice = material.voice(number)
        video = system.film(scene, [voice], num_frames=SEGMENT_FRAMES, seed=number)
        found.append(follow(video, scene.mouths[0], voice))
    return statistics.median(found)


def _photo_face(scene: DrawnPhoto) -> Tensor:
    return measures.face_signature(scene.photo.permute(2, 0, 1) / 255, scene.faces[0])


ROWS: dict[str, Rows] = {
    "one": one_speaker,
    "none": no_voice,
    "two": two_speakers,
    "labels": equal_labels,
    "text": painted_wall,
    "long": long_video,
    "drift": unmatched_colours,
    "quantised": quantised,
}
"""Groups of rows by the names of the command line."""
