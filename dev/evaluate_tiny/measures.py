"""Measures of videos: how a mouth follows a voice, colours, faces, seams. Tensors only."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from ...multitalk_core.method.color import rgb_to_lab
from ..train_tiny.mouth import correlation

_FACE_CELLS = 12
"""A face is compared as so many by so many mean colours."""


def lagged_correlations(measured: Tensor, expected: Tensor, *, reach: int) -> dict[int, float]:
    """Give the correlation of two curves `(T,)` for every lag up to `reach` frames.

    At a positive lag the measured curve is late.
    """
    length = len(measured)
    found = {}
    for lag in range(-reach, reach + 1):
        late = measured[max(lag, 0) : length + min(lag, 0)]
        early = expected[max(-lag, 0) : length + min(-lag, 0)]
        found[lag] = correlation(late, early)
    return found


def best_lag(measured: Tensor, expected: Tensor, *, reach: int = 4) -> int:
    """Give the lag in frames at which two curves agree most."""
    found = lagged_correlations(measured, expected, reach=reach)
    return max(found, key=lambda lag: found[lag])


def seam_ratios(video: Tensor, seams: list[int], *, every: int = 1) -> list[float]:
    """Compare the change of picture at each seam with the median change.

    Args:
        video: `(3, T, H, W)`.
        seams: First frames of later segments.
        every: Frames of which the median is taken: all, or every fourth from frame 1 on, where a
            new latent begins.
    """
    change = video.diff(dim=1).abs().mean(dim=(0, 2, 3))
    middle = float(change[::every].median())
    return [float(change[seam - 1]) / max(middle, 1e-9) for seam in seams]


def colour_difference(one: Tensor, other: Tensor) -> float:
    """Give the distance of two pictures' mean colours in CIE Lab (delta E 1976).

    Args:
        one: `(3, H, W)` in [0, 1].
        other: Likewise, of any size.
    """
    means = [rgb_to_lab(picture).mean(dim=(1, 2)) for picture in (one, other)]
    return float((means[0] - means[1]).norm())


def face_signature(picture: Tensor, box: Tensor) -> Tensor:
    """Give a face as a coarse grid of colours, `(3, 12, 12)` in Lab.

    Args:
        picture: `(3, H, W)` in [0, 1].
        box: Left, top, right, bottom in pixels, `(4,)`.
    """
    left, top, right, bottom = (round(float(edge)) for edge in box)
    height, width = picture.shape[1:]
    part = picture[:, max(top, 0) : min(bottom, height), max(left, 0) : min(right, width)]
    return functional.adaptive_avg_pool2d(rgb_to_lab(part), (_FACE_CELLS, _FACE_CELLS))


def nearer_than(own: Tensor, photo: Tensor, others: Tensor) -> float:
    """Give the share of other faces that differ more from a photo than its own later face.

    Args:
        own: Signature of the later face, `(3, 12, 12)`.
        photo: Signature of the photo's face.
        others: Signatures of other faces, `(N, 3, 12, 12)`.
    """
    distance = (own - photo).norm()
    return float(((others - photo).flatten(1).norm(dim=1) > distance).float().mean())


def towards(colour: Tensor, *, start: Tensor, goal: Tensor) -> float:
    """Tell how far a colour has moved from one to another, from 0 to 1.

    All are mean colours `(3,)`.
    """
    way = goal - start
    return float((colour - start) @ way / (way @ way).clamp_min(1e-9))


def wall_colour(picture: Tensor) -> Tensor:
    """Give the mean colour `(3,)` of a picture's `(3, H, W)` upper corners."""
    corners = torch.cat((picture[:, :20, :16], picture[:, :20, -16:]), dim=2)
    return corners.mean(dim=(1, 2))
