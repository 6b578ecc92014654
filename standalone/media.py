"""Photos, masks and voices from files, as tensors; every format Pillow and FFmpeg know."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from math import inf
from pathlib import Path

import av
import numpy as np
import torch
from av.error import FFmpegError
from PIL import Image, ImageFile, ImageOps, UnidentifiedImageError
from torch import Tensor

from ..multitalk_core.errors import InputError
from ..multitalk_core.inputs.timeline import require_memory
from ..multitalk_core.inputs.voices import Recording

_MASK_FROM = 128
"""Grey level from which a pixel of a mask file belongs to the speaker: half of white."""
_MAX_PIXELS = 400_000_000
"""Largest picture that is read, in pixels; Pillow's own limit is below today's largest photos."""
_HEIC_BRANDS = (b"heic", b"heix", b"hevc", b"heim", b"mif1", b"msf1")

_log = logging.getLogger(__name__)


def read_photo(path: Path) -> Tensor:
    """Read a picture, turned as its EXIF data says.

    Returns:
        `(H, W, C)` with C of 1, 3 or 4: uint8, or float32 as it is in the file.

    Raises:
        InputError: If the file is missing, damaged, too large or no picture.
    """
    image = _open_image(path, what="photo")
    if image.has_transparency_data:
        image = image.convert("RGBA")
    elif image.mode.startswith("I"):
        image = Image.fromarray((_sixteen_bit(image, path) // 257).astype(np.uint8))
    elif image.mode == "1":
        image = image.convert("L")
    elif image.mode not in ("L", "F", "RGB"):
        image = image.convert("RGB")
    return torch.from_numpy(np.array(image)).reshape(image.height, image.width, -1)


def read_mask(path: Path) -> Tensor:
    """Read a mask: white where the speaker is, or painted in one colour on a transparent layer.

    Returns:
        `(H, W)` bool.

    Raises:
        InputError: If the file is missing, damaged, too large or no picture, or if it is unclear
            whether its colours or its transparency are the mask.
    """
    image = _open_image(path, what="mask")
    if image.mode == "F":
        return torch.from_numpy(np.asarray(image) >= 0.5)
    if image.mode.startswith("I"):
        return torch.from_numpy(_sixteen_bit(image, path) // 257 >= _MASK_FROM)
    bright = torch.from_numpy(np.array(image.convert("RGB").convert("L"))) >= _MASK_FROM
    if not image.has_transparency_data:
        return bright
    alpha = torch.from_numpy(np.array(image.convert("RGBA").getchannel("A")))
    visible = alpha >= _MASK_FROM
    if bool(visible.all()):
        return bright
    if bool(bright[visible].any()) and not bool(bright[visible].all()):
        raise InputError(
            f"The mask {path.name} has transparent parts and both light and dark colours, so it is "
            "unclear which is the mask. Save it without transparency, white where the speaker is "
            "and black elsewhere."
        )
    return visible


def read_voice(path: Path, *, memory: float = inf) -> Recording:
    """Read the first sound track of a file; more than two channels become stereo.

    Damaged packets are left out. A track that changes its rate or channels midway, as in joined
    files, is converted to the format it begins with.

    Args:
        path: Any file that FFmpeg reads.
        memory: Memory of the device that runs Wav2Vec2, in bytes; a longer track is refused.

    Raises:
        InputError: If the file is missing, damaged, too long or has no sound.
    """
    if not os.path.isfile(path):
        raise InputError(f"There is no voice file {path}. Give a WAV, MP3, FLAC or M4A file.")
    try:
        # FFmpeg takes what precedes a colon in a relative name for a protocol
        with av.open(str(path.absolute())) as container:
            if not container.streams.audio:
                raise InputError(f"{path.name} has no sound. Give a WAV, MP3, FLAC or M4A file.")
            decoder = _Decoder(container)
            parts, num_samples = [], 0
            for part in decoder.parts():
                parts.append(part)
                num_samples += part.shape[1]
                require_memory(num_samples / decoder.sample_rate, memory=memory)
    except FFmpegError as reason:
        raise InputError(
            f"{path.name} cannot be read as sound ({reason.strerror}). "
            "Give a WAV, MP3, FLAC or M4A file."
        ) from reason
    if not num_samples:
        raise InputError(f"{path.name} holds no sound at all. Give another recording.")
    if decoder.faults:
        _log.warning("%s is joined or damaged: %s.", path.name, " and ".join(decoder.faults))
    return Recording(
        torch.from_numpy(np.concatenate(parts, axis=1)), decoder.sample_rate, path.name
    )


class _Decoder:
    """Decodes a sound track as the `ffmpeg` command does, and keeps what was wrong with it.

    Attributes:
        sample_rate: Of the first frame, in Hz; every later one is converted to it.
        faults: What was wrong, for a message: the keys, in order.
    """

    def __init__(self, container: av.container.InputContainer) -> None:
        self._container = container
        self.sample_rate = 0
        self.faults: dict[str, None] = {}

    def parts(self) -> Iterator[np.ndarray]:
        """Yield the sound in parts `(C, N)` float32."""
        resampler: av.AudioResampler | None = None
        source: tuple[int, str, str] | None = None
        layout = ""
        for frame in self._frames():
            found = frame.sample_rate, frame.layout.name, frame.format.name
            if resampler is None:
                self.sample_rate = frame.sample_rate
                layout = "mono" if frame.layout.nb_channels == 1 else "stereo"
            if found != source:
                if resampler is not None:
                    yield from (out.to_ndarray() for out in resampler.resample(None))
                    self.faults[f"all of it was converted to {self.sample_rate} Hz, {layout}"] = (
                        None
                    )
                source = found
                resampler = av.AudioResampler(format="fltp", layout=layout, rate=self.sample_rate)
            assert resampler is not None
            yield from (out.to_ndarray() for out in resampler.resample(frame))
        if resampler is not None:
            yield from (out.to_ndarray() for out in resampler.resample(None))

    def _frames(self) -> Iterator[av.AudioFrame]:
        """Yield every frame that can be decoded; if none can, raise the first error."""
        error: FFmpegError | None = None
        decoded = False
        for packet in self._container.demux(audio=0):
            try:
                frames = packet.decode()
            except FFmpegError as reason:
                error = error or reason
                self.faults["damaged parts were left out"] = None
                continue
            for frame in frames:
                decoded = True
                yield frame
        if error is not None and not decoded:
            raise error


def _sixteen_bit(image: Image.Image, path: Path) -> np.ndarray:
    values = np.asarray(image).astype(np.int64)
    least, most = int(values.min()), int(values.max())
    if least < 0 or most > 65_535:
        raise InputError(
            f"{path.name} holds whole numbers from {least} to {most}; 8 or 16 bits (0 to 65535) "
            "are needed. Save it again as PNG or JPEG."
        )
    return values


def _open_image(path: Path, *, what: str) -> Image.Image:
    if not os.path.isfile(path):
        raise InputError(f"There is no {what} file {path}. Give a PNG or JPEG file.")
    try:
        with _opened(path) as image:
            if image.width * image.height > _MAX_PIXELS:
                raise InputError(
                    f"The {what} {path.name} has {image.width}x{image.height} pixels; at most "
                    f"{_MAX_PIXELS // 1_000_000} million can be read. Scale it down."
                )
            return ImageOps.exif_transpose(image)
    except UnidentifiedImageError as reason:
        raise InputError(
            f"{path.name} is no picture that Pillow can read. Give a PNG or JPEG file."
        ) from reason
    except (OSError, ValueError, SyntaxError) as reason:
        raise InputError(
            f"{path.name} cannot be read as a picture ({reason}). Save it again as PNG or JPEG."
        ) from reason


def _opened(path: Path) -> ImageFile.ImageFile:
    with path.open("rb") as file:
        head = file.read(12)
    if head[4:8] == b"ftyp" and head[8:12] in _HEIC_BRANDS:
        return _opened_heic(path)
    limit = Image.MAX_IMAGE_PIXELS
    Image.MAX_IMAGE_PIXELS = None  # only the header is read here, and `_MAX_PIXELS` replaces it
    try:
        return Image.open(path)
    finally:
        Image.MAX_IMAGE_PIXELS = limit


def _opened_heic(path: Path) -> ImageFile.ImageFile:
    try:
        from pillow_heif import HeifImageFile
    except ImportError as reason:
        raise InputError(
            f"{path.name} is a HEIC picture, which needs the Python package pillow-heif. Install "
            "it with `pip install pillow-heif`, or save the picture as PNG or JPEG."
        ) from reason
    image: ImageFile.ImageFile = HeifImageFile(path)
    return image
