"""Upstream's division of a video into segments, to compare with its recorded runs.

Follows the loops of MultiTalk `wan/multitalk.py:generate` and of InfiniteTalk. The product's own
division is `multitalk_core/method/segments.py:plan`.
"""

from __future__ import annotations

from collections.abc import Sequence

from ...multitalk_core.config import Method
from ...multitalk_core.method.segments import SegmentPlan, cut_segments


def upstream_plan(
    audio_frames: Sequence[int],
    *,
    method: Method,
    segment_frames: int,
    motion_frames: int,
    max_frames: int = 1000,
) -> SegmentPlan:
    """Cut a video into segments as upstream does.

    Args:
        audio_frames: Audio features of each speaker, all longer than a segment.
        method: Which upstream loop; they cut the end differently.
        segment_frames: Frames sampled at once.
        motion_frames: Frames a later segment takes over.
        max_frames: Upstream's limit; not above `segment_frames` means a single segment.

    Returns:
        The plan; `num_frames` is 0 where upstream returns an empty video.
    """
    stretches = [(0, segment_frames)]
    if max_frames <= segment_frames:
        segments = cut_segments(stretches, max_frames, motion_frames)
        return SegmentPlan(segments, max_frames, fade_frames=0)
    last = False
    while not last:
        start = stretches[-1][1] - motion_frames
        stretches.append((start, start + segment_frames))
        last = stretches[-1][1] >= min(max_frames, audio_frames[0])
    sampled = stretches[-1][1]
    num_frames = min(sampled, max_frames)
    # as upstream multitalk.py: 3 frames more than the last segment lacks are mirrored, then cut
    missing = [sampled - length + 3 if sampled >= length else 0 for length in audio_frames]
    if sum(missing) and method == "infinitetalk":
        num_frames = min(num_frames, audio_frames[-1])
    elif sum(missing):  # `[:-0]` of speaker 1 is an empty video there
        num_frames = max(0, num_frames - missing[0]) if missing[0] else 0
    segments = cut_segments(stretches, num_frames, motion_frames)
    return SegmentPlan(segments, num_frames, fade_frames=0)
