"""Seams: the crossfade from one segment into the next.

Last step of each segment in `engine.Engine.segments`. A segment begins with the motion frames: the
last frames of the segment before, encoded and decoded once more, so they look a little different.
Departure from MultiTalk `wan/multitalk.py:generate`, which drops this second version and cuts hard,
so that the whole difference falls on one frame: here the first version crossfades into the second
over the motion frames. Both versions show the same moments, so nothing is seen double.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class Joined(NamedTuple):
    """What a segment adds to the video.

    Attributes:
        final: Frames that no later segment changes, `(3, T, H, W)`.
        tail: Frames after them, which crossfade into the next segment, `(3, M, H, W)`.
    """

    final: Tensor
    tail: Tensor


def join(frames: Tensor, *, keep: slice, tail: Tensor | None, num_pending: int) -> Joined:
    """Join a segment to the video so far.

    Args:
        frames: The segment's frames, `(3, T, H, W)` on any device.
        keep: Which of them are new to the video.
        tail: The video's last M frames, `(3, M, H, W)` on the CPU, which this segment shows again
            in the M frames before its new ones; `None` for the first segment.
        num_pending: How many of the last frames will crossfade into the next segment; 0 for a hard
            cut, and for the last segment.

    Returns:
        The crossfaded tail and the new frames, in order, on the CPU; copies, no views.
    """
    num_faded = 0 if tail is None else tail.shape[1]
    video = frames[:, keep.start - num_faded : keep.stop].to("cpu", copy=True)
    if tail is not None:
        video[:, :num_faded] = fade(tail, video[:, :num_faded])
    num_final = video.shape[1] - num_pending
    return Joined(video[:, :num_final], video[:, num_final:].clone())


def fade(before: Tensor, after: Tensor) -> Tensor:
    """Crossfade one version of the same moments `(3, M, H, W)` into another.

    The share of `after` grows in M + 1 equal steps, from 0 in the frame before these to 1 in the
    frame behind them.
    """
    num_frames = before.shape[1]
    weights = torch.arange(1, num_frames + 1, device=before.device) / (num_frames + 1)
    return torch.lerp(before, after, weights.to(before.dtype)[:, None, None])
