"""The photo: from any image tensor to the picture the model sees, and to CLIP's input.

First step of the flow. Follows `resize_and_centercrop` in MultiTalk `wan/utils/multitalk_utils.py`,
which resizes by Pillow, and the preprocessing in `wan/modules/clip.py`.

Departure: transparent parts become white (upstream shows whatever colour hides under them).
"""

from __future__ import annotations

import logging

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional

from ..errors import InputError
from ..geometry import Size, cover_crop

CLIP_SIZE = 224
"""Side of the CLIP vision tower's input, in pixels."""

_CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
_CLIP_STD = (0.26862954, 0.26130258, 0.27577711)
_RANGE_SLACK = 0.5
"""How far a float image may exceed [0, 1]: more than resampling overshoots."""

log = logging.getLogger(__name__)


def to_photo(image: Tensor) -> Tensor:
    """Turn any image tensor into an 8-bit RGB photo.

    Args:
        image: `(H, W)`, `(H, W, C)` or `(B, H, W, C)` with C of 1 (grey), 3 (RGB) or 4 (RGB and
            alpha); uint8, or float in [0, 1]. Of a batch the first image is used.

    Returns:
        The photo, `(H, W, 3)` uint8; transparent parts are white.

    Raises:
        InputError: If the tensor is no image, is empty, or holds NaN or values far outside [0, 1].
    """
    pixels = _one_image(image)
    if pixels.dtype == torch.uint8 and pixels.shape[-1] != 4:
        return pixels.expand(*pixels.shape[:2], 3).contiguous()
    if pixels.dtype == torch.uint8:
        values = pixels.float() / 255
    elif pixels.is_floating_point():
        values = pixels.float()
        _check_range(values)
    else:
        raise InputError(
            f"The photo holds {pixels.dtype} values; uint8 or floats in [0, 1] are needed. "
            "Convert it first."
        )
    values = values.clamp(0, 1)
    if values.shape[-1] == 4:
        alpha = values[..., 3:]
        values = values[..., :3] * alpha + (1 - alpha)
    return (values * 255).round().to(torch.uint8).expand(*values.shape[:2], 3).contiguous()


def prepare(photo: Tensor, *, size: Size) -> Tensor:
    """Resize a photo until it covers the video's size, crop the centre and scale to [-1, 1].

    Args:
        photo: `(H0, W0, 3)` uint8.
        size: The video's size in pixels.

    Returns:
        The picture, `(1, 3, 1, H, W)` float32 in [-1, 1]: one video frame.

    Raises:
        InputError: If `photo` is not `(H0, W0, 3)` uint8.
    """
    if photo.ndim != 3 or photo.shape[-1] != 3 or photo.dtype != torch.uint8 or photo.numel() == 0:
        raise InputError(
            f"The photo is {photo.dtype} of shape {tuple(photo.shape)}; (height, width, 3) uint8 "
            "is needed. Pass it through `to_photo` first."
        )
    crop = cover_crop(Size(*photo.shape[:2]), size=size)
    resized = Image.fromarray(photo.cpu().numpy()).resize(
        (crop.resized.width, crop.resized.height), Image.Resampling.BILINEAR
    )
    pixels = torch.from_numpy(np.array(resized)).permute(2, 0, 1)
    pixels = pixels[:, crop.top : crop.top + size.height, crop.left : crop.left + size.width]
    return (pixels.float() / 255 * 2 - 1)[None, :, None]


def resize_for_clip(image: Tensor) -> Tensor:
    """Make CLIP's input: bicubic to 224x224 without crop or antialias, then normalised.

    Args:
        image: `(B, 3, H, W)` in [-1, 1].

    Returns:
        `(B, 3, 224, 224)` float32.
    """
    small = functional.interpolate(
        image.float(), size=(CLIP_SIZE, CLIP_SIZE), mode="bicubic", align_corners=False
    )
    mean = torch.tensor(_CLIP_MEAN, device=image.device)[:, None, None]
    std = torch.tensor(_CLIP_STD, device=image.device)[:, None, None]
    return (small * 0.5 + 0.5 - mean) / std


def _one_image(image: Tensor) -> Tensor:
    """Return the first image of any layout as `(H, W, C)`, checked."""
    pixels = image
    if pixels.ndim == 4 and pixels.shape[0] > 1:
        log.warning("The photo is a batch of %d images; the first is used.", pixels.shape[0])
    if pixels.ndim == 4 and pixels.shape[0] > 0:
        pixels = pixels[0]
    if pixels.ndim == 2:
        pixels = pixels[..., None]
    if pixels.ndim != 3 or pixels.shape[-1] not in (1, 3, 4):
        raise InputError(
            f"The photo has the shape {tuple(image.shape)}; (height, width, channels) with 1, 3 "
            "or 4 channels is needed. Connect an image."
        )
    if pixels.numel() == 0:
        raise InputError(
            f"The photo is empty (shape {tuple(image.shape)}). Connect an image with pixels."
        )
    return pixels


def _check_range(values: Tensor) -> None:
    if not bool(torch.isfinite(values).all()):
        raise InputError(
            "The photo holds NaN or infinite values. Check the step that made the image."
        )
    least, most = float(values.min()), float(values.max())
    if least < -_RANGE_SLACK or most > 1 + _RANGE_SLACK:
        raise InputError(
            f"The photo's values run from {least:.3g} to {most:.3g}; floats in [0, 1] are needed. "
            "Scale it, or give uint8."
        )
