"""Stage `speech`: a tiny Wav2Vec2 whose layers describe speech.

    python -m comfyui_multitalk.dev.train_tiny speech --out DIR

Through a linear head that is dropped afterwards, every layer learns to predict for each video frame
a mel spectrum and the mouth's movement. Class, strides and file format are those of
chinese-wav2vec2-base. As in `multitalk_core.inputs.features`, the features are resampled to 25 Hz
before the encoder; the result is measured through that module too.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import librosa
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional
from transformers import Wav2Vec2Config, Wav2Vec2Model

from ...multitalk_core.inputs.features import (
    audio_features,
    encoder_layers,
    load_wav2vec2,
    normalized_track,
)
from ...wan_gguf_loader.files import open_weights
from ..make_tiny import TinySet
from ..tiny.save import save_weights
from .articulation import FPS, SAMPLE_RATE, articulation
from .voices import FILE_NAME, TEST_VOICES, TRAIN_VOICES, load_voices

NUM_HEADS = 4
NUM_BANDS = 32
"""Mel bands that the heads tell."""
STEPS = 1400
SEED = 3

_FRAME = SAMPLE_RATE // FPS  # samples
_SPEEDS = (0.84, 0.92, 1.0, 1.09, 1.19)  # of the training voices: more timbres
_LENGTHS = (50, 75, 100, 150, 250)  # video frames of a step's clips
_CLIP_FRAMES = 800  # video frames of a step, all clips together
_RATE = 2e-3  # of learning, at its highest
_WARM_UP = 150  # steps
_MOUTH_WEIGHT = 8.0  # of opening and width against all mel bands
_STATE = "speech.state.pt"


class Track(NamedTuple):
    """A voice, and the targets that its features must predict."""

    voice: NDArray[np.float32]
    """`(N,)` at 16 kHz."""
    targets: NDArray[np.float32]
    """Per video frame `(T, bands + 2)`: mel bands of mean 0 and deviation 1, opening, width."""


def config() -> Wav2Vec2Config:
    """Give the sizes: 12 layers x 32 channels, without dropout and masking."""
    return Wav2Vec2Config(
        hidden_size=32,
        num_hidden_layers=12,
        num_attention_heads=NUM_HEADS,
        intermediate_size=128,
        conv_dim=(32,) * 7,  # strides and kernels stay those of the real one: 50 features a second
        hidden_dropout=0.0,
        attention_dropout=0.0,
        activation_dropout=0.0,
        feat_proj_dropout=0.0,
        layerdrop=0.0,
        mask_time_prob=0.0,
        mask_feature_prob=0.0,
    )


def layers(model: Wav2Vec2Model, sounds: Tensor, *, num_frames: int) -> Tensor:
    """Compute the features of `audio_features` for a batch of normalised sounds, with gradients.

    Args:
        model: The encoder.
        sounds: `(B, N)` at 16 kHz, each of mean 0 and variance 1.
        num_frames: Video frames.

    Returns:
        `(B, T, L, C)`.
    """
    heard = functional.interpolate(
        model.feature_extractor(sounds), size=num_frames, mode="linear", align_corners=True
    )
    return torch.stack(encoder_layers(model, heard.transpose(1, 2)), dim=2)


def tracks(voices: Mapping[str, NDArray[np.float32]]) -> list[Track]:
    """Give the training voices at several speeds, with their targets."""
    heard = [
        librosa.resample(voices[name], orig_sr=round(SAMPLE_RATE * speed), target_sr=SAMPLE_RATE)
        for name in TRAIN_VOICES
        for speed in _SPEEDS
    ]
    spectra = [_mel(voice) for voice in heard]
    every = np.concatenate(spectra)
    mean, deviation = every.mean(axis=0), every.std(axis=0)
    return [
        Track(
            voice,
            np.concatenate(
                ((spectrum - mean) / deviation, articulation(voice, len(spectrum))), axis=1
            ).astype(np.float32),
        )
        for voice, spectrum in zip(heard, spectra, strict=True)
    ]


def _mel(voice: NDArray[np.float32]) -> NDArray[np.float32]:
    """Give the log-mel spectrum of the middle of each video frame, `(T, bands)`."""
    num_frames = len(voice) // _FRAME
    power = librosa.feature.melspectrogram(
        y=voice, sr=SAMPLE_RATE, n_fft=1024, hop_length=_FRAME // 2, n_mels=NUM_BANDS
    )
    return np.log(power.T[1::2][:num_frames] + 1e-3).astype(np.float32)


def train(
    data: Sequence[Track],
    *,
    steps: int,
    state_path: Path | None = None,
    keep_every: int = 250,
) -> Wav2Vec2Model:
    """Train the encoder; continue from `state_path` if that exists.

    Args:
        data: Voices and their targets.
        steps: Steps in all.
        state_path: Checkpoint file.
        keep_every: Steps between two reports, and between two checkpoints.
    """
    torch.manual_seed(SEED)
    model = Wav2Vec2Model(config())
    heads = nn.ModuleList(nn.Linear(32, NUM_BANDS + 2) for _ in range(12))
    parameters = [*model.parameters(), *heads.parameters()]
    optimiser = torch.optim.AdamW(parameters, lr=_RATE, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimiser, lambda step: _rate(step, steps))
    keeper = nn.ModuleDict({"model": model, "heads": heads})
    first = 0
    if state_path is not None and state_path.is_file():
        state = torch.load(state_path, weights_only=True)
        keeper.load_state_dict(state["weights"])
        optimiser.load_state_dict(state["optimiser"])
        schedule.load_state_dict(state["schedule"])
        first = state["step"]
    started = time.monotonic()
    for step in range(first, steps):
        loss = _loss(model, heads, data, step=step)
        optimiser.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimiser.step()
        schedule.step()
        if (step + 1) % keep_every == 0:
            seconds = time.monotonic() - started
            sys.stdout.write(f"step {step + 1}  loss {loss.item():.3f}  {seconds:.0f} s\n")
            sys.stdout.flush()
            if state_path is not None:
                _keep(state_path, keeper, optimiser, schedule, step=step + 1)
    return model.requires_grad_(False).eval()


def _rate(step: int, steps: int) -> float:
    """Give the learning rate: it rises over the first steps, then falls to zero along a cosine."""
    return min(1.0, (step + 1) / _WARM_UP) * 0.5 * (1 + float(np.cos(np.pi * step / steps)))


def _keep(
    path: Path,
    keeper: nn.Module,
    optimiser: torch.optim.Optimizer,
    schedule: torch.optim.lr_scheduler.LambdaLR,
    *,
    step: int,
) -> None:
    draft = path.with_suffix(".part")
    parts = {"weights": keeper, "optimiser": optimiser, "schedule": schedule}
    torch.save({"step": step, **{name: part.state_dict() for name, part in parts.items()}}, draft)
    draft.replace(path)


def _loss(
    model: Wav2Vec2Model, heads: nn.ModuleList, data: Sequence[Track], *, step: int
) -> Tensor:
    sounds, targets = batch(data, step=step)
    heard = layers(model, sounds, num_frames=targets.shape[1])
    total = torch.zeros(())
    for i_layer, head in enumerate(heads):
        wrong = (head(heard[:, :, i_layer]) - targets).square().mean(dim=(0, 1))
        total = total + wrong[:NUM_BANDS].mean() + _MOUTH_WEIGHT * wrong[NUM_BANDS:].mean()
    return total / len(heads)


def batch(data: Sequence[Track], *, step: int) -> tuple[Tensor, Tensor]:
    """Cut the clips of a step: sounds `(B, N)` and targets `(B, T, bands + 2)`."""
    rng = np.random.default_rng([SEED, step])
    num_frames = int(rng.choice(_LENGTHS))
    sounds, targets = [], []
    for _ in range(_CLIP_FRAMES // num_frames):
        track = data[rng.integers(len(data))]
        start = int(rng.integers(len(track.targets) - num_frames))
        voice = track.voice[start * _FRAME : (start + num_frames) * _FRAME]
        if rng.random() < 0.3:
            level = 0.07 * 10 ** rng.uniform(-2.5, -1.5)  # 30 to 50 dB below the speech
            voice = voice + level * rng.standard_normal(len(voice))
        sounds.append(normalized_track(torch.from_numpy(voice.astype(np.float32))))
        targets.append(torch.from_numpy(track.targets[start : start + num_frames]))
    return torch.stack(sounds), torch.stack(targets)


class Probe(NamedTuple):
    """What a linear probe, fitted on the training voices, predicts for a test voice."""

    opening: float
    """Correlation with the mouth's opening."""
    width: float
    """Correlation with the mouth's width."""


def probe(
    model: Wav2Vec2Model, voices: Mapping[str, NDArray[np.float32]], *, piece: int | None = None
) -> dict[str, Probe]:
    """Fit a linear probe on the training voices, and give its correlations on the test voices.

    Args:
        model: The encoder.
        voices: All voices.
        piece: Video frames of a test voice that the encoder gets at a time; all by default.
    """
    train = [_heard(model, voices[name], piece=None) for name in TRAIN_VOICES]
    inputs = np.concatenate([heard for heard, _ in train])
    wanted = np.concatenate([curves for _, curves in train])
    inputs = np.concatenate((inputs, np.ones((len(inputs), 1))), axis=1)
    gram = inputs.T @ inputs + 1e-3 * len(inputs) * np.eye(inputs.shape[1])
    weights = np.linalg.solve(gram, inputs.T @ wanted)
    found = {}
    for name in TEST_VOICES:
        heard, curves = _heard(model, voices[name], piece=piece)
        told = heard @ weights[:-1] + weights[-1]
        found[name] = Probe(*(float(np.corrcoef(told[:, i], curves[:, i])[0, 1]) for i in range(2)))
    return found


def _heard(
    model: Wav2Vec2Model, voice: NDArray[np.float32], *, piece: int | None
) -> tuple[NDArray[np.float64], NDArray[np.float32]]:
    num_frames = len(voice) // _FRAME
    step = (piece or num_frames) * _FRAME
    parts = [
        audio_features(model, torch.from_numpy(voice[start : start + step]))
        for start in range(0, num_frames * _FRAME, step)
    ]
    heard = torch.cat(parts).flatten(1).double().numpy()
    return heard, articulation(voice, num_frames)


def save(path: Path, model: Wav2Vec2Model) -> None:
    """Write the encoder like the released files: fp16, older names, head count in the metadata."""
    conv = "encoder.pos_conv_embed.conv"
    released = {
        f"{conv}.parametrizations.weight.original0": f"{conv}.weight_g",
        f"{conv}.parametrizations.weight.original1": f"{conv}.weight_v",
    }
    named = {
        f"wav2vec2.{released.get(name, name)}": value for name, value in model.state_dict().items()
    }
    save_weights(path, named, num_heads=NUM_HEADS)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the number of steps."""
    parser.add_argument("--steps", type=int, default=STEPS, help="steps of training in all")


def run(arguments: argparse.Namespace) -> None:
    """Train on `voices.npz` of `--out`, write the encoder there and print the probe's figures."""
    torch.set_num_threads(1)
    voices = load_voices(arguments.out / FILE_NAME)
    state_path = arguments.out / _STATE
    if not arguments.resume:
        state_path.unlink(missing_ok=True)
    path = TinySet(arguments.out).wav2vec2
    save(path, train(tracks(voices), steps=arguments.steps, state_path=state_path))
    with open_weights(path) as file:
        model = load_wav2vec2(file.weights(), num_heads=NUM_HEADS, source=path.name)
    for piece in (None, 125):
        for name, found in probe(model, voices, piece=piece).items():
            heard = "whole" if piece is None else f"{piece} frames at a time"
            sys.stdout.write(
                f"{name} ({heard}): opening r {found.opening:.3f}, width r {found.width:.3f}\n"
            )
