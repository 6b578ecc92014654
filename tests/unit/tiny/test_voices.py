"""The speakers of the tiny family: held out means another timbre and other sentences."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest

from comfyui_multitalk.dev.train_tiny import voices
from comfyui_multitalk.dev.train_tiny.articulation import articulation


def test_held_out_speakers_share_no_timbre_with_training() -> None:
    timbres = {
        split: {s.name.split("+")[1] for s in voices.SPEAKERS if s.split == split}
        for split in ("train", "test")
    }
    assert not timbres["train"] & timbres["test"]
    assert len(voices.TRAIN_VOICES) >= 12
    assert len(voices.TEST_VOICES) >= 4
    assert len({*voices.TRAIN_VOICES, *voices.TEST_VOICES}) == len(voices.SPEAKERS)


def test_held_out_sentences_are_never_read_in_training() -> None:
    languages = {speaker.language for speaker in voices.SPEAKERS}
    train, test = (
        {text for spoken in languages for text in voices.sentences(split=split, language=spoken)}
        for split in ("train", "test")
    )
    assert train
    assert test
    assert not train & test


@pytest.mark.parametrize("speaker", voices.SPEAKERS, ids=lambda speaker: speaker.name)
def test_speaker_has_enough_sentences_of_its_language(speaker: voices.EspeakVoice) -> None:
    assert len(voices.sentences(split=speaker.split, language=speaker.language)) >= 14


def test_voices_file_keeps_silence_and_the_mouth(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    sound = np.concatenate((np.zeros(16000), 0.07 * rng.standard_normal(16000), np.zeros(16000)))
    voices.save_voices(tmp_path / "voices.npz", {"a+b": sound.astype(np.float32)})
    (loaded,) = voices.load_voices(tmp_path / "voices.npz").values()
    assert loaded.dtype == np.float32
    assert (loaded[sound == 0] == 0).all()
    assert np.linalg.norm(loaded - sound) < 0.02 * np.linalg.norm(sound)
    assert np.abs(articulation(loaded, 75) - articulation(sound, 75)).max() < 0.01
    assert [path.name for path in tmp_path.iterdir()] == ["voices.npz"]


@pytest.mark.skipif(shutil.which("espeak-ng") is None, reason="espeak-ng is not installed")
def test_speaker_reads_the_same_again_with_pauses() -> None:
    once, again = (voices.read(voices.SPEAKERS[0], 20 * 16000) for _ in range(2))
    assert np.array_equal(once, again)
    shut = articulation(once, 500)[:, 0] == 0
    edges = np.flatnonzero(np.diff(np.r_[False, shut, False].astype(int)))
    assert max(edges[1::2] - edges[::2]) >= 45  # frames; the long pause
    assert 0.1 < shut.mean() < 0.6


def test_speaking_without_espeak_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(OSError, match="Install espeak-ng"):
        voices.make(tmp_path / "voices.npz")
