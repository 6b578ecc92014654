"""The example that comes with the pack: a drawn person's photo, and a voice made by a computer."""

from __future__ import annotations

import wave
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

_INPUTS = Path(__file__).resolve().parents[2] / "workflows" / "inputs"
_SENTENCE = (0.64, 2.68)
"""Where one sentence begins and ends in the voice, in seconds; silence before and after it."""


def read_photo() -> Tensor:
    """Read the photo as ComfyUI's IMAGE, `(1, H, W, 3)` in [0, 1]."""
    with Image.open(_INPUTS / "tiny_portrait.png") as file:
        pixels = np.asarray(file.convert("RGB"), dtype=np.float32)
    return torch.from_numpy(pixels / 255)[None]


def read_voice() -> dict[str, Any]:
    """Read the voice as ComfyUI's AUDIO: `waveform` `(1, 1, N)` in [-1, 1], `sample_rate` in Hz."""
    with wave.open(str(_INPUTS / "tiny_voice.wav")) as file:
        rate = file.getframerate()
        start, stop = (round(seconds * rate) for seconds in _SENTENCE)
        file.setpos(start)
        samples = np.frombuffer(file.readframes(stop - start), "<i2").astype(np.float32)
    return {"waveform": torch.from_numpy(samples / 32768)[None, None], "sample_rate": rate}
