"""Photos, masks and voices read from files of many kinds."""

from __future__ import annotations

import wave
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from PIL import Image

from comfyui_multitalk.multitalk_core.errors import InputError
from comfyui_multitalk.multitalk_core.inputs.photo import to_photo
from comfyui_multitalk.standalone.media import read_mask, read_photo, read_voice

RED = (250, 10, 20)


def _image(mode: str) -> Image.Image:
    if mode == "I;16":
        return Image.fromarray(np.full((4, 6), 200 * 257 + 100, dtype=np.uint16))
    image = Image.new("RGB", (6, 4), RED)
    return image.convert(mode)


@pytest.mark.parametrize(
    ("mode", "suffix", "channels", "first"),
    [
        ("RGB", ".png", 3, RED),
        ("RGBA", ".png", 4, (*RED, 255)),
        ("L", ".png", 1, (83,)),
        ("LA", ".png", 4, (83, 83, 83, 255)),
        ("1", ".png", 1, (0,)),
        ("P", ".png", 3, None),
        ("I;16", ".png", 1, (200,)),
        ("CMYK", ".tif", 3, RED),
    ],
)
def test_photo_of_any_mode_is_read(
    tmp_path: Path, mode: str, suffix: str, channels: int, first: tuple[int, ...] | None
) -> None:
    path = tmp_path / f"photo{suffix}"
    _image(mode).save(path)
    photo = read_photo(path)
    assert photo.dtype == torch.uint8
    assert tuple(photo.shape[:2]) == (4, 6)
    if mode != "P":
        assert photo.shape[2] == channels
        assert tuple(photo[0, 0].tolist()) == pytest.approx(first, abs=1)
    assert tuple(to_photo(photo).shape) == (4, 6, 3)


def test_photo_with_a_transparent_palette_has_alpha(tmp_path: Path) -> None:
    path = tmp_path / "photo.png"
    image = Image.new("P", (6, 4), 0)
    image.putpalette([*RED, 0, 0, 0])
    image.save(path, transparency=0)
    assert read_photo(path)[0, 0].tolist() == [*RED, 0]


def test_photo_is_turned_as_the_camera_says(tmp_path: Path) -> None:
    path = tmp_path / "photo.jpg"
    exif = Image.Exif()
    exif[0x0112] = 6  # the top of the picture is on the right
    _image("RGB").save(path, exif=exif)
    assert tuple(read_photo(path).shape) == (6, 4, 3)


def test_mask_is_white_where_the_speaker_is(tmp_path: Path) -> None:
    image = Image.new("RGB", (4, 2), 0)
    image.paste((255, 255, 255), (2, 0, 4, 2))
    image.save(tmp_path / "mask.png")
    assert read_mask(tmp_path / "mask.png").tolist() == [[False, False, True, True]] * 2


@pytest.mark.parametrize("content", [None, b"", b"no picture", b"\x89PNG\r\n\x1a\n0000"])
def test_photo_that_cannot_be_read_is_named(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "photo.png"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(InputError, match=r"photo\.png") as error:
        read_photo(path)
    assert "\n" not in str(error.value)


def test_photo_cut_short_is_named(tmp_path: Path) -> None:
    path = tmp_path / "photo.png"
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    Image.fromarray(noise).save(path)
    path.write_bytes(path.read_bytes()[:6000])
    with pytest.raises(InputError, match="cannot be read as a picture"):
        read_photo(path)


def _write_sound(path: Path, sound: np.ndarray, sample_rate: int, *, codec: str) -> None:
    layout = {1: "mono", 2: "stereo", 6: "5.1"}[len(sound)]
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=sample_rate, layout=layout)
        frame = av.AudioFrame.from_ndarray(sound, format="fltp", layout=layout)
        frame.sample_rate = sample_rate
        container.mux(stream.encode(frame))
        container.mux(stream.encode(None))


def _tone(channels: int, sample_rate: int) -> np.ndarray:
    time = np.arange(sample_rate, dtype=np.float32) / sample_rate
    return np.tile(0.5 * np.sin(2 * np.pi * 440 * time), (channels, 1)).astype(np.float32)


@pytest.mark.parametrize(
    ("name", "codec", "sample_rate", "channels", "read_channels"),
    [
        ("a.wav", "pcm_s16le", 44_100, 1, 1),
        ("a.wav", "pcm_f32le", 16_000, 2, 2),
        ("a.flac", "flac", 48_000, 2, 2),
        ("a.wav", "pcm_s16le", 48_000, 6, 2),
    ],
)
def test_voice_keeps_its_rate_and_samples(
    tmp_path: Path, name: str, codec: str, sample_rate: int, channels: int, read_channels: int
) -> None:
    sound = _tone(channels, sample_rate)
    _write_sound(tmp_path / name, sound, sample_rate, codec=codec)
    voice = read_voice(tmp_path / name)
    assert voice.sample_rate == sample_rate
    assert tuple(voice.waveform.shape) == (read_channels, sample_rate)
    if channels <= 2:
        assert np.abs(voice.waveform.numpy() - sound).max() < 1e-4


def test_voice_in_a_compressed_file_is_read(tmp_path: Path) -> None:
    _write_sound(tmp_path / "a.m4a", _tone(1, 48_000), 48_000, codec="aac")
    voice = read_voice(tmp_path / "a.m4a")
    assert abs(voice.waveform.shape[1] - 48_000) <= 2048
    assert 0.45 < float(voice.waveform[0, 10_000:40_000].abs().max()) < 0.55


@pytest.mark.parametrize("content", [None, b"", b"no sound" * 100])
def test_voice_that_cannot_be_read_is_named(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "voice.wav"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(InputError, match=r"voice\.wav") as error:
        read_voice(path)
    assert "\n" not in str(error.value)


def test_voice_of_no_samples_is_named(tmp_path: Path) -> None:
    with wave.open(str(tmp_path / "voice.wav"), "wb") as file:
        file.setparams((1, 2, 16_000, 0, "NONE", ""))
    with pytest.raises(InputError, match=r"voice\.wav holds no sound at all"):
        read_voice(tmp_path / "voice.wav")


def test_voice_in_a_picture_has_no_sound(tmp_path: Path) -> None:
    _image("RGB").save(tmp_path / "voice.png")
    with pytest.raises(InputError, match="has no sound"):
        read_voice(tmp_path / "voice.png")
