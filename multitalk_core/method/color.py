"""Colour correction: pull every frame's colours to the photo's, so that long videos do not drift.

Runs on decoded frames, before the last of them seed the next segment. Follows
`match_and_blend_colors` in MultiTalk `wan/utils/multitalk_utils.py` (Reinhard et al. 2001: match
mean and deviation in CIE Lab); the conversions are those of scikit-image's `rgb2lab` and `lab2rgb`
(sRGB, D65, 2 degrees), in float32.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..errors import InputError

_XYZ_FROM_RGB = (
    (0.412453, 0.357580, 0.180423),
    (0.212671, 0.715160, 0.072169),
    (0.019334, 0.119193, 0.950227),
)
_WHITE = (0.95047, 1.0, 1.08883)
_FLAT_STD = 1e-4
"""A channel that varies less, in Lab units, is flat: its deviation is rounding noise."""


def match_color_(frames: Tensor, reference: Tensor, *, strength: float) -> Tensor:
    """Give frames the reference's mean and deviation in each Lab channel, in place.

    Only one frame at a time takes memory beside the video.

    Args:
        frames: `(1, 3, T, H, W)` in [-1, 1]; overwritten.
        reference: The picture whose colours are wanted, `(1, 3, 1, H', W')` in [-1, 1].
        strength: 0 leaves the frames as they are, 1 matches fully; between, RGB is blended.

    Returns:
        `frames`.

    Raises:
        InputError: If `strength` lies outside [0, 1].
    """
    if not 0 <= strength <= 1:
        raise InputError(f"The colour strength is {strength}; it must lie between 0 and 1.")
    if strength == 0:
        return frames
    target = rgb_to_lab(_unit_range(reference[0, :, 0]))
    for frame in frames[0].unbind(dim=1):
        matched = _match_frame(_unit_range(frame), target=target, strength=strength)
        frame.copy_(matched * 2 - 1)
    return frames


def rgb_to_lab(rgb: Tensor) -> Tensor:
    """Turn sRGB `(3, H, W)` in [0, 1] into CIE Lab `(3, H, W)` (L 0 to 100)."""
    linear = torch.where(rgb > 0.04045, ((rgb + 0.055) / 1.055) ** 2.4, rgb / 12.92)
    xyz = torch.einsum("ij,jhw->ihw", rgb.new_tensor(_XYZ_FROM_RGB), linear)
    xyz = xyz / rgb.new_tensor(_WHITE)[:, None, None]
    x, y, z = torch.where(xyz > 0.008856, xyz.clamp(min=0) ** (1 / 3), 7.787 * xyz + 16 / 116)
    return torch.stack((116 * y - 16, 500 * (x - y), 200 * (y - z)))


def lab_to_rgb(lab: Tensor) -> Tensor:
    """Turn CIE Lab `(3, H, W)` into sRGB `(3, H, W)`, clipped to [0, 1]."""
    lightness, a, b = lab
    y = (lightness + 16) / 116
    xyz = torch.stack(
        (y + a / 500, y, (y - b / 200).clamp(min=0))
    )  # as scikit-image: only z is clipped
    xyz = torch.where(xyz > 0.2068966, xyz**3, (xyz - 16 / 116) / 7.787)
    xyz = xyz * lab.new_tensor(_WHITE)[:, None, None]
    rgb_from_xyz = torch.tensor(_XYZ_FROM_RGB, dtype=torch.float64).inverse().to(lab)
    linear = torch.einsum("ij,jhw->ihw", rgb_from_xyz, xyz)
    rgb = torch.where(
        linear > 0.0031308, 1.055 * linear.clamp(min=0) ** (1 / 2.4) - 0.055, 12.92 * linear
    )
    return rgb.clamp(0, 1)


def _match_frame(rgb: Tensor, *, target: Tensor, strength: float) -> Tensor:
    lab = rgb_to_lab(rgb)
    mean, std = _channel_mean(lab), _channel_std(lab)
    gain = torch.where(std < _FLAT_STD, 0, _channel_std(target) / std.clamp(min=_FLAT_STD))
    matched = lab_to_rgb((lab - mean) * gain + _channel_mean(target))
    return (1 - strength) * rgb + strength * matched


def _channel_mean(lab: Tensor) -> Tensor:
    return lab.mean(dim=(1, 2), keepdim=True)


def _channel_std(lab: Tensor) -> Tensor:
    return lab.std(dim=(1, 2), keepdim=True, correction=0)


def _unit_range(image: Tensor) -> Tensor:
    return ((image.float() + 1) / 2).clamp(0, 1)
