"""Stage `features`: the Wav2Vec2 features and the mouth movement of every voice, in one file.

    python -m comfyui_multitalk.dev.train_tiny features --out DIR

The features come from `multitalk_core.inputs.features`, as in use. The file stores them in 8 bits,
one scale per layer and channel for all voices. Reading it needs only torch and safetensors.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from ...wan_gguf_loader.files import open_weights
from ..tiny.files import TinySet
from .articulation import FPS, SAMPLE_RATE, articulation
from .voices import FILE_NAME as VOICES_FILE
from .voices import load_voices

FILE_NAME = "features.safetensors"
SILENCE = "silence"
"""Name of a track of nothing but zeros."""
SILENCE_FRAMES = 125

_SCALE = "scale"
_STEPS = 127


class VoiceFeatures(NamedTuple):
    """One voice at 25 Hz."""

    features: Tensor
    """`(T, L, C)` float32, as `audio_features` gives them."""
    articulation: Tensor
    """Opening in [0, 1] and width in [-1, 1], `(T, 2)` float32."""


def make(folder: Path) -> dict[str, VoiceFeatures]:
    """Compute features of every voice of a folder with `voices.npz` and the trained Wav2Vec2."""
    # imported here: whoever only reads the file has no transformers
    from ...multitalk_core.inputs.features import audio_features, load_wav2vec2
    from .speech import NUM_HEADS

    path = TinySet(folder).wav2vec2
    with open_weights(path) as file:
        model = load_wav2vec2(file.weights(), num_heads=NUM_HEADS, source=path.name)
    voices = load_voices(folder / VOICES_FILE)
    voices[SILENCE] = np.zeros(SILENCE_FRAMES * SAMPLE_RATE // FPS, dtype=np.float32)
    heard = {}
    for name, voice in voices.items():
        features = audio_features(model, torch.from_numpy(voice))
        curves = torch.from_numpy(articulation(voice, len(features)))
        heard[name] = VoiceFeatures(features, curves)
    return heard


def save_features(path: Path, voices: dict[str, VoiceFeatures]) -> None:
    """Write features in 8 bits, atomically."""
    largest = torch.stack([voice.features.abs().amax(dim=0) for voice in voices.values()])
    scale = largest.amax(dim=0).clamp_min(1e-6) / _STEPS
    tensors = {_SCALE: scale}
    for name, voice in voices.items():
        tensors[f"{name}.features"] = (voice.features / scale).round().to(torch.int8)
        tensors[f"{name}.articulation"] = voice.articulation.contiguous()
    draft = path.with_suffix(".part")
    save_file(tensors, draft)
    draft.replace(path)


def load_features(path: Path) -> dict[str, VoiceFeatures]:
    """Read the file of `save_features`: every voice, and silence under `SILENCE`."""
    tensors = load_file(path)
    scale = tensors.pop(_SCALE)
    names = [key.removesuffix(".features") for key in tensors if key.endswith(".features")]
    return {
        name: VoiceFeatures(
            tensors[f"{name}.features"].float() * scale, tensors[f"{name}.articulation"]
        )
        for name in names
    }


def add_arguments(_parser: argparse.ArgumentParser) -> None:
    """Add no option to those of every stage."""


def run(arguments: argparse.Namespace) -> None:
    """Write `features.safetensors` into `--out`."""
    path = arguments.out / FILE_NAME
    save_features(path, make(arguments.out))
    sys.stdout.write(f"{path.stat().st_size:,} bytes  {path.name}\n")
