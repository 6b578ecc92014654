"""Segments: the stretches of video that are sampled one after another, and what each adds.

Fourth step of a video; follows the loop of MultiTalk `wan/multitalk.py:generate`.
A segment takes over `motion_frames` frames from the one before and adds the rest. Departures: the
video is exactly as long as the sound and the last segment is filled with silence, where upstream
plays the features backwards, loses three frames and may return no video at all; a video shorter
than a segment is one shorter segment, where upstream stops; a segment fades into the next over the
motion frames, where upstream cuts hard (`seams.py`). Stdlib only.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from ..errors import InputError
from ..geometry import FRAME_STRIDE

TAIL_FRAMES = 80
"""Frames of silence appended to every voice before its features are taken, so that the last
segment of the usual 81 frames has sound to the end: 3.2 s."""


class Segment(NamedTuple):
    """One stretch of video, in video frames.

    Attributes:
        start: First frame.
        stop: One past the last; the last segment may reach beyond the video's end.
        keep: Which of the segment's own frames no segment before it shows.
    """

    start: int
    stop: int
    keep: slice

    @property
    def num_frames(self) -> int:
        """Frames sampled at once, 4n + 1."""
        return self.stop - self.start


class SegmentPlan(NamedTuple):
    """The segments of one video, in order.

    Attributes:
        segments: What is sampled, at least one.
        num_frames: Frames of the video, the sum of what the segments keep.
        fade_frames: Frames over which a segment fades into the next: the motion frames, or 0 for a
            hard cut.
    """

    segments: tuple[Segment, ...]
    num_frames: int
    fade_frames: int

    def pending_frames(self, index: int) -> int:
        """Give how many of a segment's last frames wait for the crossfade into the next one."""
        return 0 if index == len(self.segments) - 1 else self.fade_frames


def plan(num_frames: int, *, segment_frames: int, motion_frames: int) -> SegmentPlan:
    """Cut a video into segments so that every frame is kept exactly once.

    Args:
        num_frames: Frames of the video.
        segment_frames: Frames sampled at once, 4n + 1.
        motion_frames: Frames a later segment takes over, 4n + 1 and fewer.

    Returns:
        The plan; a video shorter than a segment is one segment of the next 4n + 1 frames.

    Raises:
        InputError: If the video has no frame.
    """
    if num_frames < 1:
        raise InputError(f"A video of {num_frames} frames has no picture. Give a longer voice.")
    if num_frames <= segment_frames:
        segment_frames = -(-(num_frames - 1) // FRAME_STRIDE) * FRAME_STRIDE + 1
    stretches = [(0, segment_frames)]
    while stretches[-1][1] < num_frames:
        start = stretches[-1][1] - motion_frames
        stretches.append((start, start + segment_frames))
    segments = cut_segments(stretches, num_frames, motion_frames)
    return SegmentPlan(segments, num_frames, fade_frames=motion_frames)


def cut_segments(
    stretches: Sequence[tuple[int, int]], num_frames: int, motion_frames: int
) -> tuple[Segment, ...]:
    """Turn stretches (first frame, one past the last) into segments that keep every frame once."""
    segments = []
    for start, stop in stretches:
        first_new = motion_frames if start else 0
        end = min(stop, max(num_frames, start + first_new)) - start
        segments.append(Segment(start, stop, slice(first_new, end)))
    return tuple(segments)
