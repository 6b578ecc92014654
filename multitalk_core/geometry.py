"""Sizes in pixels, latents and tokens, and the rules that connect them. Stdlib only.

The buckets are the tables ASPECT_RATIO_627 and ASPECT_RATIO_960 of MultiTalk
`wan/utils/multitalk_utils.py`.
"""

from __future__ import annotations

import logging
import math
from typing import Literal, NamedTuple

from .errors import InputError

FRAME_STRIDE = 4
"""Video frames per latent frame, after the first."""
PIXEL_STRIDE = 8
"""Pixels per latent, each way."""
TOKEN_PIXELS = 16
"""Pixels per token, each way: two latents. Every size is a multiple of it."""

MAX_SIDE = 4096
"""Longest side of a video, in pixels."""

Resolution = Literal["480p", "720p"]


class Size(NamedTuple):
    """A picture's size in pixels."""

    height: int
    width: int


class Box(NamedTuple):
    """A rectangle in pixels of the photo; `right` and `bottom` lie just outside."""

    left: int
    top: int
    right: int
    bottom: int


class GridSize(NamedTuple):
    """Token grid of one segment (one token = 1 latent frame x 2 x 2 latent pixels)."""

    frames: int
    height: int
    width: int


class CoverCrop(NamedTuple):
    """How a picture is made to cover a size: resized, then cut from `top`, `left` on (pixels)."""

    resized: Size
    top: int
    left: int


_log = logging.getLogger(__name__)

_BUCKETS: dict[Resolution, dict[float, Size]] = {
    "480p": {
        0.26: Size(320, 1216), 0.38: Size(384, 1024), 0.50: Size(448, 896), 0.67: Size(512, 768),
        0.82: Size(576, 704), 1.00: Size(640, 640), 1.22: Size(704, 576), 1.50: Size(768, 512),
        1.86: Size(832, 448), 2.00: Size(896, 448), 2.50: Size(960, 384), 2.83: Size(1088, 384),
        3.60: Size(1152, 320), 3.80: Size(1216, 320), 4.00: Size(1280, 320),
    },
    "720p": {
        0.22: Size(448, 2048), 0.29: Size(512, 1792), 0.36: Size(576, 1600), 0.45: Size(640, 1408),
        0.55: Size(704, 1280), 0.63: Size(768, 1216), 0.76: Size(832, 1088), 0.88: Size(896, 1024),
        1.00: Size(960, 960), 1.14: Size(1024, 896), 1.31: Size(1088, 832), 1.50: Size(1152, 768),
        1.58: Size(1216, 768), 1.82: Size(1280, 704), 1.91: Size(1344, 704), 2.20: Size(1408, 640),
        2.30: Size(1472, 640), 2.67: Size(1536, 576), 2.89: Size(1664, 576), 3.62: Size(1856, 512),
        3.75: Size(1920, 512),
    },
}  # fmt: skip


def bucket_size(photo: Size, *, resolution: Resolution) -> Size:
    """Give upstream's size for a photo: the bucket with the nearest height / width."""
    buckets = _BUCKETS[resolution]
    ratio = photo.height / photo.width
    return buckets[min(buckets, key=lambda key: abs(key - ratio))]


def aspect_size(photo: Size, *, longest_side: int) -> Size:
    """Give the size of the photo's aspect with a longest side in pixels, snapped to 16."""
    scale = longest_side / max(photo)
    return snap_size(Size(round(photo.height * scale), round(photo.width * scale)))


def video_size(photo: Size, *, wanted: Resolution | Size | int) -> Size:
    """Choose the size of the video, and warn if it is not the size asked for.

    Args:
        photo: The photo's size.
        wanted: A bucket table, an exact size, or the longest side in pixels.

    Raises:
        InputError: If a side is longer than `MAX_SIDE`, or is not positive.
    """
    if isinstance(wanted, str):
        return bucket_size(photo, resolution=wanted)
    longest = wanted if isinstance(wanted, int) else max(wanted)
    asked = (
        f"a longest side of {wanted}"
        if isinstance(wanted, int)
        else f"{wanted.width}x{wanted.height}"
    )
    if longest > MAX_SIDE:
        raise InputError(
            f"A video of {asked} pixels is too large. Give at most {MAX_SIDE} pixels a side."
        )
    size = aspect_size(photo, longest_side=wanted) if isinstance(wanted, int) else snap_size(wanted)
    if longest != max(size) or (isinstance(wanted, Size) and size != wanted):
        _log.warning(
            "%s pixels is no multiple of 16; the video is %dx%d.", asked, size.width, size.height
        )
    return size


def snap_size(size: Size) -> Size:
    """Round both sides to the nearest multiple of 16 pixels, at least 16.

    Raises:
        InputError: If a side is not positive.
    """
    if min(size) <= 0:
        raise InputError(
            f"A video of {size.width}x{size.height} pixels has no picture. Give a larger size."
        )
    height, width = (
        max(TOKEN_PIXELS, (side + TOKEN_PIXELS // 2) // TOKEN_PIXELS * TOKEN_PIXELS)
        for side in size
    )
    return Size(height, width)


def cover_crop(photo: Size, *, size: Size) -> CoverCrop:
    """Give the smallest resize of a photo that covers `size`, and where to cut its centre."""
    scale = max(size.height / photo.height, size.width / photo.width)
    resized = Size(math.ceil(scale * photo.height), math.ceil(scale * photo.width))
    # as torchvision's center_crop: halves are rounded to even
    return CoverCrop(
        resized, round((resized.height - size.height) / 2), round((resized.width - size.width) / 2)
    )


def latent_frames(num_frames: int) -> int:
    """Give the latent frames F of `num_frames` = 4n + 1 video frames."""
    return (num_frames - 1) // FRAME_STRIDE + 1


def token_grid(num_frames: int, size: Size) -> GridSize:
    """Give the token grid of `num_frames` video frames of `size` pixels."""
    return GridSize(
        latent_frames(num_frames), size.height // TOKEN_PIXELS, size.width // TOKEN_PIXELS
    )
