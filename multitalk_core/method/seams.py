"""Seams: where the frames of one segment go over into those of the next.

Last step of `pipeline.generate`. A segment begins with the motion frames, the last frames of the
one before, and shows them again after a second trip through the autoencoder: the same moments,
drawn a little differently. Departure from MultiTalk `wan/multitalk.py:generate`, which drops the
second showing and cuts hard, so that the whole difference falls on one frame: here the first
showing fades into the second over the motion frames. No moment meets another one in it, so nothing
is seen double.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class Joined(NamedTuple):
    """What a segment adds to the video.

    Attributes:
        final: Frames that no later segment changes, `(3, T, H, W)`.
        tail: Frames after them, which the next segment fades out, `(3, M, H, W)`; may be none.
    """

    final: Tensor
    tail: Tensor


def join(frames: Tensor, *, keep: slice, tail: Tensor | None, num_held: int) -> Joined:
    """Join a segment to the video so far.

    Args:
        frames: The segment's frames, `(3, T, H, W)` on any device.
        keep: Which of them are new to the video.
        tail: The video's last M frames, `(3, M, H, W)` on the CPU, shown again by the M frames
            before the new ones; `None` for the first segment.
        num_held: How many of the last frames the next segment will fade out; 0 for a hard cut, and
            for the last segment.

    Returns:
        The frames of the tail, faded, and the new ones, in order, on the CPU; no part of the input.
    """
    num_faded = 0 if tail is None else tail.shape[1]
    video = frames[:, keep.start - num_faded : keep.stop].to("cpu", copy=True)
    if tail is not None:
        video[:, :num_faded] = fade(tail, video[:, :num_faded])
    num_final = video.shape[1] - num_held
    return Joined(video[:, :num_final], video[:, num_final:].clone())


def fade(before: Tensor, after: Tensor) -> Tensor:
    """Fade one showing of the same moments into another.

    Args:
        before: `(3, M, H, W)`.
        after: Likewise.

    Returns:
        Frames `(3, M, H, W)`: with M + 1 equal steps from the frame before, wholly of the first
        showing, to the frame after, wholly of the second.
    """
    num_frames = before.shape[1]
    weights = torch.arange(1, num_frames + 1, device=before.device) / (num_frames + 1)
    return torch.lerp(before, after, weights.to(before.dtype)[:, None, None])
