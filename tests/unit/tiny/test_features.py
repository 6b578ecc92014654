"""What the training hears: the encoder's own path, in a file small enough to travel."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from comfyui_multitalk.dev.make_tiny import TinySet
from comfyui_multitalk.dev.train_tiny import features, speech
from comfyui_multitalk.dev.train_tiny.articulation import articulation
from comfyui_multitalk.dev.train_tiny.voices import save_voices
from comfyui_multitalk.multitalk_core.inputs.features import (
    audio_features,
    load_wav2vec2,
    normalized_track,
)
from comfyui_multitalk.wan_gguf_loader.files import open_weights

if TYPE_CHECKING:
    from transformers import Wav2Vec2Model

RATE = 16000


def _voice(seconds: float, *, seed: int) -> np.ndarray:
    """Give noise that swells and fades three times a second."""
    rng = np.random.default_rng(seed)
    time = np.arange(round(seconds * RATE)) / RATE
    swell = np.sin(1.5 * np.pi * time + seed) ** 2
    return (0.1 * swell * rng.standard_normal(len(time))).astype(np.float32)


@pytest.fixture(scope="module")
def model() -> Wav2Vec2Model:
    torch.manual_seed(0)
    return speech.Wav2Vec2Model(speech.config()).requires_grad_(False).eval()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, model: Wav2Vec2Model) -> Path:
    """Give a folder with two voices, the encoder and the features it hears."""
    folder = tmp_path_factory.mktemp("train")
    save_voices(folder / "voices.npz", {f"v{i}": _voice(3 + i, seed=i) for i in range(2)})
    speech.save(TinySet(folder).wav2vec2, model)
    features.save_features(folder / features.FILE_NAME, features.make(folder))
    return folder


def test_training_hears_what_the_core_hears(model: Wav2Vec2Model) -> None:
    clips = [torch.from_numpy(_voice(2, seed=seed)) for seed in range(3)]
    sounds = torch.stack([normalized_track(clip) for clip in clips])
    heard = speech.layers(model, sounds, num_frames=50)
    expected = torch.stack([audio_features(model, clip) for clip in clips])
    assert heard.shape == (3, 50, 12, 32)
    assert (heard - expected).norm() < 1e-4 * expected.norm()


def test_encoder_file_has_released_names_and_loads_again(
    folder: Path, model: Wav2Vec2Model
) -> None:
    path = TinySet(folder).wav2vec2
    with open_weights(path) as file:
        loaded = load_wav2vec2(file.weights(), num_heads=file.num_heads, source=path.name)
    assert "wav2vec2.encoder.pos_conv_embed.conv.weight_g" in load_file(path)
    track = torch.from_numpy(_voice(2, seed=5))
    expected = audio_features(model, track)
    assert (audio_features(loaded, track) - expected).norm() < 0.02 * expected.norm()  # fp16


def test_features_file_holds_what_the_core_hears(folder: Path) -> None:
    loaded = features.load_features(folder / features.FILE_NAME)
    made = features.make(folder)
    assert loaded.keys() == {"v0", "v1", features.SILENCE} == made.keys()
    for name, frames in (("v0", 75), ("v1", 100), (features.SILENCE, features.SILENCE_FRAMES)):
        assert loaded[name].features.shape == (frames, 12, 32)
        assert loaded[name].features.dtype == torch.float32
        assert torch.equal(loaded[name].articulation, made[name].articulation)
        wrong = loaded[name].features - made[name].features
        assert wrong.norm() < 0.02 * made[name].features.norm()


def test_features_of_silence_come_with_a_shut_mouth(folder: Path) -> None:
    loaded = features.load_features(folder / features.FILE_NAME)
    assert (loaded[features.SILENCE].articulation == 0).all()
    assert loaded["v0"].articulation[:, 0].max() > 0.3


def test_features_file_takes_eight_bits_a_value(folder: Path) -> None:
    values = 12 * 32 * (75 + 100 + features.SILENCE_FRAMES)
    assert (folder / features.FILE_NAME).stat().st_size < 1.1 * values
    assert not list(folder.glob("*.part"))


class _Interrupted(list):
    """Data that ends the training when a clip more than `left` is cut."""

    left = 10**9

    def __getitem__(self, index):
        self.left -= 1
        if self.left < 0:
            raise KeyboardInterrupt
        return super().__getitem__(index)


def test_speech_training_resumes_where_it_was_stopped(tmp_path: Path) -> None:
    data = _Interrupted()
    for seed in range(2):
        voice = _voice(12, seed=seed)
        bands = np.random.default_rng(seed).standard_normal((300, speech.NUM_BANDS))
        targets = np.concatenate((bands, articulation(voice, 300)), axis=1)
        data.append(speech.Track(voice, targets.astype(np.float32)))
    state = tmp_path / "state.pt"
    clips_of_two_steps = sum(len(speech.batch(data, step=step)[0]) for step in range(2))
    whole = speech.train(data, steps=3)
    data.left = clips_of_two_steps + 1
    with pytest.raises(KeyboardInterrupt):
        speech.train(data, steps=3, state_path=state, keep_every=1)
    first = torch.load(state, weights_only=True)["step"]
    assert first == 2
    data.left = 10**9
    resumed = speech.train(data, steps=3, state_path=state, keep_every=1)
    for one, other in zip(whole.parameters(), resumed.parameters(), strict=True):
        assert torch.allclose(one, other, atol=1e-6)
