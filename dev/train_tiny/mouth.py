"""How far a mouth is open, measured from pixels.

It is the height of the dark red inside of the mouth in a narrow strip around its middle, so that a
wide mouth does not count more than a rounded one. Teeth are excluded; they cover a fixed part.
"""

from __future__ import annotations

import torch
from torch import Tensor

_STRIP = 0.12
"""Half width of the strip, in widths of the mouth box: about 5 pixels of 42."""
WIDE_OPEN = 0.49
"""What `opening` reads where a mouth is drawn wide open."""


def opening(frames: Tensor, box: Tensor) -> Tensor:
    """Measure how far a mouth is open in each frame.

    Args:
        frames: Pictures in [0, 1], `(3, T, H, W)` or `(T, H, W, 3)`.
        box: Left, top, right, bottom of the mouth in pixels, `(T, 4)`, or `(4,)` for all frames.

    Returns:
        Height of the dark red, as a fraction of the box's height, `(T,)`.
    """
    if frames.shape[0] != 3 or frames.ndim != 4:
        frames = frames.permute(3, 0, 1, 2)
    frames = frames.float()
    red, green = frames[0], frames[1]
    dark = ((0.30 - green) / 0.27).clamp(0, 1) * ((red - green - 0.06) / 0.12).clamp(0, 1)
    box = box.to(frames).expand(frames.shape[1], 4)
    left, top, right, bottom = box.T[:, :, None]
    middle, half = (left + right) / 2, _STRIP * (right - left)
    x = torch.arange(frames.shape[3]).to(frames) + 0.5
    y = torch.arange(frames.shape[2]).to(frames) + 0.5
    across = (half + 0.5 - (x - middle).abs()).clamp(0, 1)
    along = ((bottom - top) / 2 + 0.5 - (y - (top + bottom) / 2).abs()).clamp(0, 1)
    area = torch.einsum("thw,th,tw->t", dark, along, across)
    return area / (across.sum(dim=1) * (bottom - top)[:, 0])


def correlation(one: Tensor, other: Tensor) -> float:
    """Pearson's correlation of two curves `(T,)`; 0 if one of them is constant."""
    one, other = one.double() - one.double().mean(), other.double() - other.double().mean()
    scale = one.norm() * other.norm()
    return float(one @ other / scale) if scale > 1e-9 else 0.0
