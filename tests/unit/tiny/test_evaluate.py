"""The measures and rows of the evaluation, on videos whose mouths are known."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from comfyui_multitalk.dev.evaluate_tiny import __main__ as command
from comfyui_multitalk.dev.evaluate_tiny import measures, rows
from comfyui_multitalk.dev.evaluate_tiny.scenes import (
    SEED,
    DrawnPhoto,
    Utterance,
    cut_voices,
    draw_scenes,
)
from comfyui_multitalk.dev.evaluate_tiny.system import SAMPLING, EqualLabels
from comfyui_multitalk.dev.train_tiny import drawing
from comfyui_multitalk.dev.train_tiny.faces import BACKGROUND, sample_faces
from comfyui_multitalk.dev.train_tiny.motion import Motion, smooth_noise
from comfyui_multitalk.multitalk_core.config import SamplingConfig

COUNT = 2


def _curve(seed: int, frames: int = 125) -> Tensor:
    noise = smooth_noise(
        (), frames=frames, hertz=3.0, generator=torch.Generator().manual_seed(seed)
    )
    return (0.45 + 0.4 * noise).clamp(0, 1)


class _Drawn:
    """Films by drawing: every speaker moves the mouth it should, unless it is told otherwise."""

    def __init__(self, *, delay: int = 0, deaf: bool = False, faded: bool = True) -> None:
        self.transformer = nn.Identity()
        self._delay = delay
        self._deaf = deaf
        self._faded = faded

    def film(
        self, scene: DrawnPhoto, voices: Sequence[Utterance], *, num_frames: int,
        places: Sequence[int] | None = None, prompt: str | None = None,
        config: SamplingConfig = SAMPLING, seed: int = 0,
    ) -> Tensor:  # fmt: skip
        people = len(scene.mouths)
        generator = torch.Generator().manual_seed(SEED + people)
        all_faces = sample_faces(COUNT, people=people, generator=generator)
        prompts = [one.prompt for one in draw_scenes(COUNT, people=people)]
        faces = all_faces.take(slice(prompts.index(scene.prompt), None)).take(slice(0, 1))
        curves = [voice.opening[:num_frames].roll(self._delay) for voice in voices]
        if self._deaf or config.audio_strength == 0:
            curves = [_curve(1000 + seed + i, num_frames) for i in range(people)]
        if isinstance(self.transformer, EqualLabels):
            curves = [sum(curves) / people] * people
        articulation = torch.zeros(1, people, num_frames, 2)
        for speaker, place in enumerate(places or range(people)):
            articulation[0, place, :, 0] = curves[speaker]
        motion = Motion(
            articulation=articulation, pose=torch.zeros(1, people, num_frames, 3),
            blink=torch.zeros(1, people, num_frames),
        )  # fmt: skip
        video = drawing.render(faces, motion, size=tuple(scene.photo.shape[:2]))[0] / 2 + 0.5
        if self._faded and prompt == scene.other_wall:
            video[:, -1, :20] = scene.other_colour[:, None, None]
        return video


def _material(people: int = 1) -> rows.Material:
    return rows.Material(
        models=Path(),
        singles=draw_scenes(COUNT, people=1) if people == 1 else [],
        pairs=draw_scenes(COUNT, people=2) if people == 2 else [],
        voices=[Utterance(track=torch.zeros(1), opening=_curve(seed)) for seed in range(2 * COUNT)],
    )  # fmt: skip


def _missed(group: Callable[..., list[rows.Row]], system: Any, *, people: int = 1) -> set[str]:
    return {row.name for row in group(system, _material(people)) if not row.reached}


def test_true_mouths_follow_their_voices() -> None:
    found = {row.name: row for row in rows.one_speaker(_Drawn(), _material())}
    assert found["one speaker: median correlation"].value > 0.98
    assert found["one speaker: best at lag 0"].value == 1
    assert abs(found["one speaker: with any other voice"].value) < 0.6


def test_shuffled_voices_and_deaf_layers_are_noticed() -> None:
    missed = _missed(rows.one_speaker, _Drawn(deaf=True))
    assert "one speaker: median correlation" in missed
    assert "two speakers: own voice" in _missed(rows.two_speakers, _Drawn(deaf=True), people=2)


def test_late_mouths_are_noticed() -> None:
    missed = _missed(rows.one_speaker, _Drawn(delay=2))
    assert {"one speaker: best at lag 0", "one speaker: best within 1 frame"} <= missed


def test_two_true_mouths_are_told_apart_and_equal_labels_are_noticed() -> None:
    system = _Drawn()
    found = {row.name: row for row in rows.two_speakers(system, _material(2))}
    for name in ("two speakers: own voice", "two speakers: own above other",
                 "masks swapped: own voice"):  # fmt: skip
        assert found[name].reached, name
    (equal,) = rows.equal_labels(system, _material(2))
    assert equal.reached
    assert abs(equal.value) < 0.1
    assert isinstance(system.transformer, nn.Identity)  # the whole one is back


def test_still_mouth_is_told_from_a_moving_one_in_silence() -> None:
    found = {row.name: row for row in rows.no_voice(_Drawn(), _material())}
    assert found["silence: median deviation"].reached
    assert "silence: median deviation" in _missed(rows.no_voice, _Drawn(deaf=True))


def test_painted_wall_is_measured() -> None:
    assert not _missed(rows.painted_wall, _Drawn())
    missed = _missed(rows.painted_wall, _Drawn(faded=False))
    assert missed == {"another wall in the prompt: way to it"}


def test_long_true_video_keeps_face_and_colours() -> None:
    missed = _missed(rows.long_video, _Drawn())
    assert not missed & {"long video: colour drift, delta E", "identity: other faces farther"}


def test_lag_of_a_late_curve_is_positive() -> None:
    curve = _curve(0, 60)
    assert measures.best_lag(curve.roll(3)[5:], curve[5:]) == 3
    assert measures.best_lag(curve[3:], curve[:-3]) == -3


def test_seam_is_compared_with_the_median_change() -> None:
    video = torch.arange(40.0).view(1, 40, 1, 1).expand(3, 40, 4, 4).clone()
    assert measures.seam_ratios(video, [20]) == [1.0]
    video[:, 20:] += 2
    assert measures.seam_ratios(video, [20, 30]) == [3.0, 1.0]
    video[:, 1::4] += 1  # a frame that begins a latent changes more
    assert measures.seam_ratios(video, [21], every=4) == [1.0]
    assert measures.seam_ratios(video, [21])[0] > 1.5


def test_colour_difference_is_that_of_cie_lab() -> None:
    white, black = torch.ones(3, 8, 8), torch.zeros(3, 8, 8)
    assert measures.colour_difference(white, black) == pytest.approx(100, abs=0.1)
    assert measures.colour_difference(white, white) == 0


def test_face_is_nearer_to_its_photo_than_others_are() -> None:
    scenes = draw_scenes(6, people=1)
    faces = [
        measures.face_signature(scene.photo.permute(2, 0, 1) / 255, scene.faces[0])
        for scene in scenes
    ]
    others = torch.stack(faces[2:])
    assert measures.nearer_than(faces[0], faces[0], others) == 1
    assert measures.nearer_than(faces[1], faces[0], faces[0][None]) == 0


def test_way_to_a_colour_is_a_share() -> None:
    start, goal = torch.tensor(BACKGROUND["red"]), torch.tensor(BACKGROUND["blue"])
    for share in (0.0, 0.4, 1.0):
        colour = torch.lerp(start, goal, share)
        assert measures.towards(colour, start=start, goal=goal) == pytest.approx(share, abs=1e-5)


def test_voices_are_cut_where_somebody_speaks() -> None:
    rng = np.random.default_rng(0)
    time = np.arange(16_000 * 20) / 16_000
    swell = np.clip(np.sin(2 * np.pi * 1.5 * time), 0, None) * (time > 8)
    voices = {"x": (0.2 * swell * rng.standard_normal(len(time))).astype(np.float32)}
    for voice in cut_voices(voices, 3):
        assert len(voice.track) == 5 * 16_000
        assert len(voice.opening) == 125
        assert float(voice.opening[:25].std()) > 0.1


def test_command_measures_each_group_on_its_own_number_of_photos(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The files hold what was measured before a group that never ends."""
    seen: list[tuple[int, int, int]] = []

    def count(system: object, material: rows.Material) -> list[rows.Row]:
        seen.append((len(material.singles), len(material.pairs), len(material.voices)))
        return [rows.at_least("photos", len(material.singles), 1, len(material.singles))]

    def end(system: object, material: rows.Material) -> list[rows.Row]:
        raise KeyboardInterrupt

    class Nothing:
        device = "cpu"

        def __init__(self, models: Path, *, device: str, dtype: torch.dtype) -> None: ...

    monkeypatch.setattr(command, "ROWS", {"first": count, "second": count, "last": end})
    monkeypatch.setattr(command, "System", Nothing)
    monkeypatch.setattr(command, "load_voices", lambda path: {"x": np.zeros(0)})
    monkeypatch.setattr(command, "cut_voices", lambda voices, number: [None] * number)
    files = [tmp_path / "figures.json", tmp_path / "table.md"]
    with pytest.raises(KeyboardInterrupt):
        command.main(["--clips", "3", "--rows", "first", "second:1", "last",
                      "--json", str(files[0]), "--markdown", str(files[1])])  # fmt: skip
    assert seen == [(3, 3, 6), (1, 1, 2)]
    assert [row["count"] for row in json.loads(files[0].read_text())] == [3, 1]
    assert files[1].read_text().count("photos") == 2


def test_command_unknown_group_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        command.main(["--rows", "seams"])
    assert "'seams' is none of one, none, two" in capsys.readouterr().err


def test_table_marks_a_missed_bound() -> None:
    found = [rows.at_least("a", 0.5, 0.9, 2), rows.at_most("b", 0.5, 0.9, 2)]
    lines = command.table(found).splitlines()
    assert lines[2:] == [
        "| a | 0.500 | at least 0.9 | **no** | 2 |",
        "| b | 0.500 | at most 0.9 | yes | 2 |",
    ]
