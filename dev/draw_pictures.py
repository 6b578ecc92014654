"""Draws thumbnails, icon and banner: python -m comfyui_multitalk.dev.draw_pictures

A thumbnail shows the workflow's photo over the waveforms of its voices, one colour per speaker.
ComfyUI looks for it beside the workflow, as `.jpg`.
"""

from __future__ import annotations

import wave
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont, ImageOps

ROOT = Path(__file__).resolve().parents[1]
EXAMPLES = ROOT / "workflows" / "inputs"
TEMPLATES = ROOT / "workflows"
ICON = ROOT / "docs" / "icon.png"
BANNER = ROOT / "docs" / "banner.png"
SIDE, BAND, BARS = 640, 132, 64  # pixels, pixels, bars over the whole width
ICON_SIDE = 400
BANNER_SIZE = (1050, 450)  # pixels: 21:9, as the registry asks
BACKGROUND = "#17191f"
SPEAKERS = ("#4aa3ff", "#ff9d3b")


class Thumbnail(NamedTuple):
    """What a template's thumbnail shows."""

    photo: str
    voices: tuple[str, ...]
    caption: str


THUMBNAILS = {
    "Try it now": Thumbnail("tiny_portrait.png", ("tiny_voice.wav",), "no downloads"),
    "Photo to talking video": Thumbnail("portrait.png", ("voice.wav",), "40 steps"),
    "Photo to talking video (quick)": Thumbnail("portrait.png", ("voice.wav",), "4 steps"),
    "Two people talking": Thumbnail("pair.png", ("left.wav", "right.wav"), "2 speakers"),
    "One segment with a custom sampler": Thumbnail(
        "portrait.png", ("voice.wav",), "custom sampler"
    ),
}


def main() -> None:
    """Draw all of them."""
    for name, thumbnail in THUMBNAILS.items():
        draw_thumbnail(thumbnail).save(TEMPLATES / f"{name}.jpg", quality=88)
    draw_icon().save(ICON, optimize=True)
    draw_banner().quantize(128).save(BANNER, optimize=True)


def draw_thumbnail(shown: Thumbnail) -> Image.Image:
    """Draw the photo, the voices one after another, and the caption."""
    picture = Image.new("RGB", (SIDE, SIDE), BACKGROUND)
    photo = Image.open(EXAMPLES / shown.photo).convert("RGB")
    picture.paste(ImageOps.fit(photo, (SIDE, SIDE - BAND), centering=(0.5, 0.3)))
    pen = ImageDraw.Draw(picture)
    sounds = [_samples(EXAMPLES / voice) for voice in shown.voices]
    whole = sum(len(sound) for sound in sounds)
    first = 0
    for color, sound in zip(SPEAKERS, sounds, strict=False):
        count = round(BARS * len(sound) / whole)
        _bars(pen, _peaks(sound, count), first=first, color=color)
        first += count
    font = ImageFont.load_default(30)
    left, top, right, bottom = pen.textbbox((SIDE - 34, 38), shown.caption, font=font, anchor="rt")
    pen.rounded_rectangle((left - 16, top - 12, right + 16, bottom + 12), 14, fill=BACKGROUND)
    pen.text((SIDE - 34, 38), shown.caption, font=font, anchor="rt", fill="white")
    return picture


def draw_icon() -> Image.Image:
    """Draw a speech bubble with a voice in it."""
    scale = 4
    picture = Image.new("RGBA", (ICON_SIDE * scale, ICON_SIDE * scale), (0, 0, 0, 0))
    pen = ImageDraw.Draw(picture)

    def at(*numbers: float) -> tuple[float, ...]:
        return tuple(number * scale for number in numbers)

    pen.rounded_rectangle(at(0, 0, 400, 400), 84 * scale, fill=BACKGROUND)
    pen.rounded_rectangle(at(56, 72, 344, 278), 60 * scale, fill="white")
    pen.polygon(at(112, 262, 112, 346, 196, 262), fill="white")
    for i_bar, height in enumerate((36, 84, 132, 72, 116, 52)):
        x, color = 100 + 36 * i_bar, SPEAKERS[i_bar >= 3]
        box = at(x, 175 - height / 2, x + 20, 175 + height / 2)
        pen.rounded_rectangle(box, 10 * scale, fill=color)
    return picture.resize((ICON_SIDE, ICON_SIDE), Image.Resampling.LANCZOS)


def draw_banner() -> Image.Image:
    """Draw the photo of the example beside the icon and the pack's name."""
    width, height = BANNER_SIZE
    picture = Image.new("RGB", BANNER_SIZE, BACKGROUND)
    photo = Image.open(EXAMPLES / "portrait.png").convert("RGB")
    picture.paste(photo.resize((height, height), Image.Resampling.LANCZOS))
    icon = draw_icon().resize((150, 150), Image.Resampling.LANCZOS)
    left = height + 60
    picture.paste(icon, (left - 24, 40), icon)
    pen = ImageDraw.Draw(picture)
    pen.text((left, 210), "MultiTalk", font=ImageFont.load_default(84), fill="white")
    text = "A photo and a voice become\na talking video: Wan2.1 in GGUF"
    pen.text((left, 326), text, font=ImageFont.load_default(30), fill="#c9ced8", spacing=12)
    assert pen.textbbox((left, 326), text, font=ImageFont.load_default(30))[2] < width
    return picture


def _samples(path: Path) -> NDArray[np.float64]:
    with wave.open(str(path)) as file:
        return np.frombuffer(file.readframes(file.getnframes()), "<i2").astype(float)


def _peaks(sound: NDArray[np.float64], count: int) -> Sequence[float]:
    loudest = np.abs(sound).max()
    return [float(np.abs(part).max() / loudest) for part in np.array_split(sound, count)]


def _bars(pen: ImageDraw.ImageDraw, peaks: Sequence[float], *, first: int, color: str) -> None:
    step = (SIDE - 40) / BARS
    middle = SIDE - BAND / 2
    for i_bar, peak in enumerate(peaks, start=first):
        x, half = 20 + i_bar * step, max(2.0, peak * (BAND / 2 - 14))
        pen.rounded_rectangle((x, middle - half, x + step - 3, middle + half), 3, fill=color)


if __name__ == "__main__":
    main()
