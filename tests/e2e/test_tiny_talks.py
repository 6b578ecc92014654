"""The shipped tiny set talks: few videos a row, looser bounds than the full table's.

The full table is `python -m comfyui_multitalk.dev.evaluate_tiny`. Each row has a way of breaking
the method that must show: another voice, deaf audio layers, equal labels.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from comfyui_multitalk.dev.evaluate_tiny import measures, rows
from comfyui_multitalk.dev.evaluate_tiny.scenes import (
    DrawnPhoto,
    Utterance,
    cut_voices,
    draw_scenes,
)
from comfyui_multitalk.dev.evaluate_tiny.system import (
    SAMPLING,
    Deaf,
    EqualLabels,
    Rewritten,
    System,
)
from comfyui_multitalk.dev.train_tiny.mouth import opening
from comfyui_multitalk.dev.train_tiny.voices import load_voices

FRAMES = 33
QUICK = replace(SAMPLING, steps=4, color_match=0.0)
SEAM = 33


@pytest.fixture(scope="module")
def models(repository: Path) -> Path:
    return repository / "models" / "tiny"


@pytest.fixture(scope="module")
def system(models: Path) -> System:
    return System(models)


@pytest.fixture(scope="module")
def voices(models: Path) -> list[Utterance]:
    return cut_voices(load_voices(models / "voices.npz"), 4)


@pytest.fixture(scope="module")
def singles() -> list[DrawnPhoto]:
    return draw_scenes(2, people=1)


@pytest.fixture(scope="module")
def pair() -> DrawnPhoto:
    return draw_scenes(1, people=2)[0]


@contextmanager
def _broken(system: System, kind: type[nn.Module]) -> Iterator[None]:
    whole = system.transformer
    system.transformer = kind(whole)
    try:
        yield
    finally:
        system.transformer = whole


def _film(
    system: System,
    scene: DrawnPhoto,
    *voices: Utterance,
    places: tuple[int, int] | None = None,
    frames: int = FRAMES,
    prompt: str | None = None,
) -> Tensor:
    return system.film(scene, voices, num_frames=frames, config=QUICK, places=places, prompt=prompt)


@pytest.fixture(scope="module")
def talking(system: System, singles: list[DrawnPhoto], voices: list[Utterance]) -> list[Tensor]:
    """Two people, each with a voice of their own."""
    return [_film(system, *said) for said in zip(singles, voices, strict=False)]


def test_mouth_follows_its_voice_and_no_other(
    talking: list[Tensor], singles: list[DrawnPhoto], voices: list[Utterance]
) -> None:
    for number, (video, scene) in enumerate(zip(talking, singles, strict=True)):
        own, other = (
            rows.follow(video, scene.mouths[0], voice) for voice in (voices[number], voices[2])
        )
        assert own > 0.85
        assert other < 0.6
        measured = opening(video, scene.mouths[0])[rows.START :]
        assert measures.best_lag(measured, voices[number].opening[rows.START : FRAMES]) == 0


def test_deaf_audio_layers_do_not_follow(
    system: System, singles: list[DrawnPhoto], voices: list[Utterance]
) -> None:
    """The base alone moves the mouth as it likes: the adapter does the talking."""
    with _broken(system, Deaf):
        video = _film(system, singles[0], voices[0])
    assert rows.follow(video, singles[0].mouths[0], voices[0]) < 0.7


def test_mouth_stays_shut_in_silence(system: System, singles: list[DrawnPhoto]) -> None:
    silence = Utterance(track=torch.zeros(16_000 * 2), opening=torch.zeros(50))
    video = _film(system, singles[0], silence)
    assert float(opening(video, singles[0].mouths[0]).std()) < 0.03


def _leads(
    video: Tensor, scene: DrawnPhoto, voices: list[Utterance], places: tuple[int, int]
) -> Tensor:
    """Give each speaker's own correlation, then own minus the other's, `(2, 2)`."""
    own = [rows.follow(video, scene.mouths[place], v)
           for v, place in zip(voices, places, strict=False)]  # fmt: skip
    cross = [rows.follow(video, scene.mouths[places[1 - i]], voices[i]) for i in range(2)]
    return torch.tensor([own, [a - b for a, b in zip(own, cross, strict=True)]])


@pytest.mark.parametrize("places", [None, (1, 0)], ids=["halves", "swapped boxes"])
def test_each_of_two_mouths_follows_its_own_voice(
    system: System, pair: DrawnPhoto, voices: list[Utterance], places: tuple[int, int] | None
) -> None:
    video = _film(system, pair, voices[0], voices[1], places=places)
    found = _leads(video, pair, voices, places or (0, 1))
    assert float(found[0].min()) > 0.75
    assert float(found[1].min()) > 0.2


def test_equal_labels_tell_nobody_apart(
    system: System, pair: DrawnPhoto, voices: list[Utterance]
) -> None:
    with _broken(system, EqualLabels):
        video = _film(system, pair, voices[0], voices[1])
    assert float(_leads(video, pair, voices, (0, 1))[1].mean()) < 0.3


def test_prompt_paints_the_wall_it_names(
    system: System, talking: list[Tensor], singles: list[DrawnPhoto], voices: list[Utterance]
) -> None:
    scene = singles[0]
    start = measures.wall_colour(scene.photo.permute(2, 0, 1) / 255)
    other = _film(system, scene, voices[0], prompt=scene.other_wall)
    gone, stayed = (
        measures.towards(measures.wall_colour(video[:, -1]), start=start, goal=scene.other_colour)
        for video in (other, talking[0])
    )
    assert gone > 0.4
    assert abs(stayed) < 0.2


def test_second_segment_goes_on_as_the_first(
    system: System, singles: list[DrawnPhoto], voices: list[Utterance]
) -> None:
    scene, voice = singles[1], voices[1]
    config = replace(QUICK, color_match=1.0)
    video = system.film(scene, [voice], num_frames=61, config=config)
    assert measures.seam_ratios(video, [SEAM])[0] < 1.5  # 1.3; 1.8 where it is cut hard
    photo = scene.photo.permute(2, 0, 1) / 255
    assert measures.colour_difference(video[:, -1], photo) < 3
    assert rows.follow(video, scene.mouths[0], voice, start=SEAM) > 0.8
    faces = [measures.face_signature(photo, scene.faces[0])]
    faces += [
        measures.face_signature(one.photo.permute(2, 0, 1) / 255, scene.faces[0])
        for one in draw_scenes(12, people=1, seed=5)
    ]
    last = measures.face_signature(video[:, -1], scene.faces[0])
    assert measures.nearer_than(last, faces[0], torch.stack(faces[1:])) == 1


def test_four_bit_base_talks_as_well(
    models: Path, singles: list[DrawnPhoto], voices: list[Utterance]
) -> None:
    with Rewritten(models, "Q4_K_M") as base:
        video = _film(System(models, base=base), singles[0], voices[0])
    assert rows.follow(video, singles[0].mouths[0], voices[0]) > 0.8
