"""Photos, masks and voices read from files of many kinds."""

from __future__ import annotations

import sys
import types
import wave
from collections.abc import Callable
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from PIL import Image

from comfyui_multitalk.multitalk_core.errors import InputError
from comfyui_multitalk.multitalk_core.geometry import Size
from comfyui_multitalk.multitalk_core.inputs.photo import prepare, to_photo
from comfyui_multitalk.standalone.media import read_mask, read_photo, read_voice

RED = (250, 10, 20)


def _image(mode: str) -> Image.Image:
    if mode == "F":
        return Image.fromarray(np.linspace(0, 1, 24, dtype=np.float32).reshape(4, 6))
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
        ("I;16", ".tif", 1, (200,)),
        ("F", ".tif", 1, None),
        ("CMYK", ".tif", 3, RED),
    ],
)
def test_photo_of_any_mode_is_read(
    tmp_path: Path, mode: str, suffix: str, channels: int, first: tuple[int, ...] | None
) -> None:
    path = tmp_path / f"photo{suffix}"
    _image(mode).save(path)
    photo = read_photo(path)
    assert photo.dtype == (torch.float32 if mode == "F" else torch.uint8)
    assert tuple(photo.shape[:2]) == (4, 6)
    if first is not None:
        assert photo.shape[2] == channels
        assert tuple(photo[0, 0].tolist()) == pytest.approx(first, abs=1)
    assert tuple(to_photo(photo).shape) == (4, 6, 3)


def test_photo_of_floats_keeps_its_shades(tmp_path: Path) -> None:
    _image("F").save(tmp_path / "photo.tif")
    photo = to_photo(read_photo(tmp_path / "photo.tif"))
    assert photo[..., 0].flatten().tolist() == [round(255 * step / 23) for step in range(24)]


@pytest.mark.parametrize(
    ("values", "says"),
    [
        (np.full((4, 6), 200.0, dtype=np.float32), "from 200 to 200; floats in"),
        (np.full((4, 6), 70_000, dtype=np.int32), "from 70000 to 70000; 8 or 16 bits"),
        (np.full((4, 6), -1, dtype=np.int32), "from -1 to -1; 8 or 16 bits"),
    ],
    ids=["floats up to 255", "beyond 16 bits", "negative"],
)
def test_photo_of_another_range_is_refused(tmp_path: Path, values: np.ndarray, says: str) -> None:
    Image.fromarray(values).save(tmp_path / "photo.tif")
    with pytest.raises(InputError, match=says):
        to_photo(read_photo(tmp_path / "photo.tif"))


def test_photo_of_200_megapixels_is_read_without_a_warning(tmp_path: Path) -> None:
    Image.new("1", (20_000, 10_000), 1).save(tmp_path / "photo.png")
    before = Image.MAX_IMAGE_PIXELS
    photo = read_photo(tmp_path / "photo.png")
    assert before == Image.MAX_IMAGE_PIXELS
    assert tuple(photo.shape) == (10_000, 20_000, 1)
    picture = prepare(to_photo(photo), size=Size(32, 64))
    assert torch.equal(picture, torch.ones(1, 3, 1, 32, 64))


def test_photo_beyond_the_limit_is_refused_with_the_numbers(tmp_path: Path) -> None:
    Image.new("1", (25_000, 20_000)).save(tmp_path / "photo.png")
    with pytest.raises(InputError, match=r"photo\.png has 25000x20000 pixels; at most 400 million"):
        read_photo(tmp_path / "photo.png")


_HEIC_HEADER = b"\0\0\0\x18ftypheic\0\0\0\0mif1heic"


def test_heic_photo_without_its_package_names_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    (tmp_path / "photo.heic").write_bytes(_HEIC_HEADER)
    with pytest.raises(InputError, match=r"photo\.heic is a HEIC picture.*pip install pillow-heif"):
        read_photo(tmp_path / "photo.heic")


def test_heic_photo_is_read_by_its_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = types.ModuleType("pillow_heif")
    package.HeifImageFile = lambda path: Image.new("RGB", (6, 4), RED)  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "pillow_heif", package)
    (tmp_path / "photo.heic").write_bytes(_HEIC_HEADER)
    assert read_photo(tmp_path / "photo.heic")[0, 0].tolist() == list(RED)


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


@pytest.mark.parametrize(
    ("painted", "hidden"),
    [((255, 255, 255), (255, 255, 255)), ((255, 255, 255), (0, 0, 0)), ((0, 0, 0), (0, 0, 0))],
    ids=["white on white", "white on black", "black"],
)
def test_mask_painted_on_a_transparent_layer_is_its_alpha(
    tmp_path: Path, painted: tuple[int, int, int], hidden: tuple[int, int, int]
) -> None:
    image = Image.new("RGBA", (4, 2), (*hidden, 0))
    image.paste((*painted, 255), (2, 0, 4, 2))
    image.save(tmp_path / "mask.png")
    assert read_mask(tmp_path / "mask.png").tolist() == [[False, False, True, True]] * 2


def test_opaque_mask_with_an_alpha_channel_is_its_colours(tmp_path: Path) -> None:
    image = Image.new("RGBA", (4, 2), (0, 0, 0, 255))
    image.paste((255, 255, 255, 255), (2, 0, 4, 2))
    image.save(tmp_path / "mask.png")
    assert read_mask(tmp_path / "mask.png").tolist() == [[False, False, True, True]] * 2


def test_mask_of_many_colours_with_transparent_parts_is_refused(tmp_path: Path) -> None:
    image = Image.new("RGBA", (4, 2), (40, 30, 20, 255))
    image.paste((200, 190, 180, 255), (1, 0, 3, 2))
    image.putpixel((0, 0), (40, 30, 20, 0))
    image.save(tmp_path / "mask.png")
    with pytest.raises(
        InputError, match=r"mask\.png has transparent parts and both light and dark"
    ):
        read_mask(tmp_path / "mask.png")


@pytest.mark.parametrize(
    "values",
    [np.array([[0, 65_535]], np.uint16), np.array([[0.0, 1.0]], np.float32)],
    ids=["16 bits", "floats"],
)
def test_mask_of_other_numbers_is_white_where_the_speaker_is(
    tmp_path: Path, values: np.ndarray
) -> None:
    Image.fromarray(values).save(tmp_path / "mask.tif")
    assert read_mask(tmp_path / "mask.tif").tolist() == [[False, True]]


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


def test_joined_and_damaged_mp3_is_decoded_as_ffmpeg_does(caplog: pytest.LogCaptureFixture) -> None:
    """24 kHz mono, then a damaged packet, 24 kHz stereo and 44.1 kHz stereo; 1.25 s by ffmpeg."""
    voice = read_voice(Path(__file__).parent / "concat_mixed.mp3")
    assert voice.sample_rate == 24_000
    assert tuple(voice.waveform.shape) == (1, 30_019)
    assert [record.getMessage() for record in caplog.records] == [
        "concat_mixed.mp3 is joined or damaged: damaged parts were left out and all of it was "
        "converted to 24000 Hz, mono."
    ]


def test_voice_longer_than_memory_allows_is_refused_with_the_numbers(tmp_path: Path) -> None:
    _write_sound(tmp_path / "a.wav", _tone(1, 48_000), 48_000, codec="pcm_s16le")
    assert read_voice(tmp_path / "a.wav", memory=20e6).waveform.shape[1] == 48_000
    with pytest.raises(InputError, match=r"needs 0\.0 GB of memory; there are 0\.0 GB"):
        read_voice(tmp_path / "a.wav", memory=10e6)


@pytest.mark.parametrize("read", [read_voice, read_photo, read_mask])
def test_file_with_a_name_that_is_too_long_is_named(read: Callable[[Path], object]) -> None:
    with pytest.raises(InputError, match=r"There is no .* file nnn"):
        read(Path("n" * 300))


def test_voice_with_a_colon_in_a_relative_name_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _write_sound(tmp_path / "a.wav", _tone(1, 16_000), 16_000, codec="pcm_s16le")
    (tmp_path / "a.wav").rename(tmp_path / "take:2.wav")
    monkeypatch.chdir(tmp_path)
    assert read_voice(Path("take:2.wav")).waveform.shape[1] == 16_000


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
