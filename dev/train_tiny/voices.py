"""Stage `voices`: sixteen espeak-ng speakers, each reading a minute of sentences with pauses.

    python -m comfyui_multitalk.dev.train_tiny voices --out DIR

Only this stage needs espeak-ng; training machines get its result, one compressed file. The test
speakers share neither timbre nor sentences with the training speakers.
"""

from __future__ import annotations

import argparse
import io
import shutil
import subprocess
import sys
import wave
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

SAMPLE_RATE = 16000
SECONDS = 60
"""Length of every voice."""
FILE_NAME = "voices.npz"

_SENTENCES = Path(__file__).with_name("sentences")
_SEED = 20251
_LONG_PAUSES = (3, 8)  # sentences followed by a pause of more than two seconds
_CURVE = 255.0  # of the mu-law: 8 bits a sample, the finer the quieter


class EspeakVoice(NamedTuple):
    """One voice of espeak-ng."""

    name: str
    """Language and variant, as espeak-ng's `-v` takes them."""
    rate: int
    """Words a minute, give or take 12 %."""
    pitch: int
    """0 to 99, give or take 8."""
    split: str
    """`train` or `test`: which sentences it reads."""

    @property
    def language(self) -> str:
        return self.name[:2]


SPEAKERS = (
    EspeakVoice("en-us+m3", 165, 45, "train"),
    EspeakVoice("en-gb+f2", 170, 55, "train"),
    EspeakVoice("en-us+f4", 150, 60, "train"),
    EspeakVoice("en-gb+m7", 180, 35, "train"),
    EspeakVoice("en-gb-scotland+m1", 155, 50, "train"),
    EspeakVoice("en-gb-x-rp+f5", 140, 50, "train"),
    EspeakVoice("en-us+klatt2", 160, 40, "train"),
    EspeakVoice("de+m5", 160, 45, "train"),
    EspeakVoice("de+f1", 150, 60, "train"),
    EspeakVoice("fr-fr+f3", 165, 50, "train"),
    EspeakVoice("es+m2", 170, 40, "train"),
    EspeakVoice("it+anika", 155, 50, "train"),
    EspeakVoice("en-us+m4", 160, 50, "test"),
    EspeakVoice("en-gb+steph", 165, 50, "test"),
    EspeakVoice("de+m8", 155, 45, "test"),
    EspeakVoice("es+belinda", 160, 55, "test"),
)
TRAIN_VOICES = tuple(speaker.name for speaker in SPEAKERS if speaker.split == "train")
TEST_VOICES = tuple(speaker.name for speaker in SPEAKERS if speaker.split == "test")


def sentences(*, split: str, language: str) -> list[str]:
    """Give the sentences that the speakers of a split read in a language such as `en`."""
    lines = (_SENTENCES / f"{split}.txt").read_text(encoding="utf-8").splitlines()
    pairs = [line.split("\t") for line in lines]
    return [sentence for spoken, sentence in pairs if spoken == language]


def make(
    path: Path, *, speakers: Sequence[EspeakVoice] = SPEAKERS, seconds: float = SECONDS
) -> None:
    """Let the speakers read, and write their voices.

    Raises:
        OSError: If espeak-ng is not installed.
    """
    if shutil.which("espeak-ng") is None:
        raise OSError("espeak-ng is not installed, so nobody can speak. Install espeak-ng.")
    samples = round(seconds * SAMPLE_RATE)
    save_voices(path, {speaker.name: read(speaker, samples) for speaker in speakers})


def read(speaker: EspeakVoice, num_samples: int) -> NDArray[np.float32]:
    """Let one speaker read until the time limit: `(N,)` at 16 kHz and -23 LUFS."""
    # imported here: whoever only loads voices needs NumPy alone
    from ...multitalk_core.inputs.voices import normalize_loudness

    rng = np.random.default_rng([_SEED, zlib.crc32(speaker.name.encode())])
    track = np.zeros(num_samples)
    offset = round(rng.uniform(0.2, 0.6) * SAMPLE_RATE)
    for i_sentence, sentence in enumerate(_shuffled(speaker, rng)):
        spoken = _speak(
            sentence,
            voice=speaker.name,
            rate=round(speaker.rate * rng.uniform(0.88, 1.12)),
            pitch=round(np.clip(speaker.pitch + rng.uniform(-8, 8), 0, 99)),
        )
        if offset + len(spoken) > num_samples:
            break
        track[offset : offset + len(spoken)] = spoken
        long = 2.2 if i_sentence in _LONG_PAUSES else 0.0
        offset += len(spoken) + round((long + rng.uniform(0.1, 1.0)) * SAMPLE_RATE)
    return normalize_loudness(track, name=speaker.name).astype(np.float32)


def _shuffled(speaker: EspeakVoice, rng: np.random.Generator) -> Iterator[str]:
    """Yield the speaker's sentences endlessly, in the speaker's own order."""
    own = sentences(split=speaker.split, language=speaker.language)
    while True:
        yield from (own[i] for i in rng.permutation(len(own)))


def _speak(sentence: str, *, voice: str, rate: int, pitch: int) -> NDArray[np.float64]:
    """Synthesise a sentence with espeak-ng at 16 kHz, without the silence at both ends."""
    import librosa

    command = ["espeak-ng", "-v", voice, "-s", str(rate), "-p", str(pitch), "--stdout", sentence]
    done = subprocess.run(command, check=True, capture_output=True)
    with wave.open(io.BytesIO(done.stdout)) as file:
        source_rate = file.getframerate()
        heard = np.frombuffer(file.readframes(2**31 - 1), dtype="<i2") / 32768.0
    sound = librosa.resample(heard, orig_sr=source_rate, target_sr=SAMPLE_RATE)
    loud = np.flatnonzero(np.abs(sound) > 0.002)
    return np.asarray(sound[loud[0] : loud[-1] + 1])


def save_voices(path: Path, voices: dict[str, NDArray[np.float32]]) -> None:
    """Write voices `(N,)` in [-1, 1] atomically, 8 bits a sample."""
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_suffix(".part.npz")
    np.savez_compressed(draft, **{name: _compress(voice) for name, voice in voices.items()})
    draft.replace(path)


def load_voices(path: Path) -> dict[str, NDArray[np.float32]]:
    """Give every speaker's voice: `(N,)` float32 at 16 kHz and -23 LUFS."""
    with np.load(path) as file:
        return {name: _expand(file[name]) for name in file.files}


def _compress(voice: NDArray[np.float32]) -> NDArray[np.int8]:
    """Compress by the mu-law; silence stays exactly 0."""
    heard = np.clip(voice.astype(np.float64), -1, 1)
    curved = np.sign(heard) * np.log1p(_CURVE * np.abs(heard)) / np.log1p(_CURVE)
    return np.round(127 * curved).astype(np.int8)


def _expand(codes: NDArray[np.int8]) -> NDArray[np.float32]:
    curved = codes.astype(np.float64) / 127
    heard = np.sign(curved) * np.expm1(np.abs(curved) * np.log1p(_CURVE)) / _CURVE
    return heard.astype(np.float32)


def add_arguments(_parser: argparse.ArgumentParser) -> None:
    """Add no option to those of every stage."""


def run(arguments: argparse.Namespace) -> None:
    """Write `voices.npz` into `--out`."""
    path = arguments.out / FILE_NAME
    make(path)
    sys.stdout.write(f"{path.stat().st_size:,} bytes  {path.name}: {len(SPEAKERS)} voices\n")
