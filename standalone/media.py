"""Photos, masks and voices from files, as tensors; every format Pillow and FFmpeg know."""

from __future__ import annotations

from pathlib import Path

import av
import numpy as np
import torch
from av.error import FFmpegError
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

from ..multitalk_core.errors import InputError
from ..multitalk_core.inputs.voices import Recording

_MASK_FROM = 128
"""Grey from which a pixel of a mask file belongs to the speaker: half of white."""


def read_photo(path: Path) -> Tensor:
    """Read a picture, turned as its EXIF data says: `(H, W, C)` uint8, C of 1, 3 or 4.

    Raises:
        InputError: If the file is missing, cut short or no picture.
    """
    image = _open_image(path, what="photo")
    if image.mode in ("P", "PA", "LA", "RGBA", "La", "RGBa") or "transparency" in image.info:
        image = image.convert("RGBA")
    elif image.mode in ("I;16", "I;16B", "I;16L", "I"):
        image = Image.fromarray((np.asarray(image).clip(0, 65_535) // 257).astype(np.uint8))
    elif image.mode == "1":
        image = image.convert("L")
    elif image.mode not in ("L", "RGB"):
        image = image.convert("RGB")
    return torch.from_numpy(np.array(image)).reshape(image.height, image.width, -1)


def read_mask(path: Path) -> Tensor:
    """Read a mask: white where the speaker is. `(H, W)` bool.

    Raises:
        InputError: If the file is missing, cut short or no picture.
    """
    image = _open_image(path, what="mask")
    return torch.from_numpy(np.array(image.convert("L"))) >= _MASK_FROM


def read_voice(path: Path) -> Recording:
    """Read the first sound track of a file at its own rate; more than two channels become stereo.

    Raises:
        InputError: If the file is missing, damaged or has no sound.
    """
    if not path.is_file():
        raise InputError(f"There is no voice file {path}. Give a WAV, MP3, FLAC or M4A file.")
    try:
        with av.open(str(path)) as container:
            if not container.streams.audio:
                raise InputError(f"{path.name} has no sound. Give a WAV, MP3, FLAC or M4A file.")
            stream = container.streams.audio[0]
            sample_rate = stream.codec_context.sample_rate
            layout = "mono" if stream.codec_context.channels == 1 else "stereo"
            resampler = av.AudioResampler(format="fltp", layout=layout, rate=sample_rate)
            frames = [
                out for frame in container.decode(stream) for out in resampler.resample(frame)
            ]
            frames += resampler.resample(None)
    except FFmpegError as reason:
        raise InputError(
            f"{path.name} cannot be read as sound ({reason.strerror}). "
            "Give a WAV, MP3, FLAC or M4A file."
        ) from reason
    parts = [frame.to_ndarray() for frame in frames]
    if not parts:
        raise InputError(f"{path.name} holds no sound at all. Give another recording.")
    return Recording(torch.from_numpy(np.concatenate(parts, axis=1)), sample_rate, path.name)


def _open_image(path: Path, *, what: str) -> Image.Image:
    if not path.is_file():
        raise InputError(f"There is no {what} file {path}. Give a PNG or JPEG file.")
    try:
        with Image.open(path) as image:
            return ImageOps.exif_transpose(image)
    except UnidentifiedImageError as reason:
        raise InputError(f"{path.name} is no picture. Give a PNG or JPEG file.") from reason
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as reason:
        raise InputError(
            f"{path.name} cannot be read as a picture ({reason}). Save it again as PNG or JPEG."
        ) from reason
