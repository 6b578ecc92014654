"""The plan: every frame once, as long as the sound."""

from __future__ import annotations

from itertools import pairwise

import pytest

from comfyui_multitalk.multitalk_core.errors import InputError
from comfyui_multitalk.multitalk_core.method.segments import SegmentPlan, plan


def kept_frames(made: SegmentPlan) -> list[int]:
    return [
        segment.start + frame
        for segment in made.segments
        for frame in range(segment.num_frames)[segment.keep]
    ]


@pytest.mark.parametrize("num_frames", [1, 2, 5, 12, 13, 14, 21, 22, 29, 100])
def test_segments_cover_every_frame_once(num_frames: int) -> None:
    made = plan(num_frames, segment_frames=13, motion_frames=5)
    assert kept_frames(made) == list(range(num_frames))
    assert made.num_frames == num_frames


@pytest.mark.parametrize("num_frames", [14, 21, 22, 100])
def test_segments_later_ones_take_over_motion_frames(num_frames: int) -> None:
    segments = plan(num_frames, segment_frames=13, motion_frames=5).segments
    assert [segment.num_frames for segment in segments] == [13] * len(segments)
    for before, after in pairwise(segments):
        assert after.start == before.stop - 5


@pytest.mark.parametrize(("num_frames", "sampled"), [(1, 1), (2, 5), (5, 5), (6, 9), (80, 81)])
def test_segments_short_video_is_one_shorter_segment(num_frames: int, sampled: int) -> None:
    (segment,) = plan(num_frames, segment_frames=81, motion_frames=25).segments
    assert segment.num_frames == sampled


def test_segments_fade_over_the_motion_frames() -> None:
    made = plan(22, segment_frames=13, motion_frames=5)
    assert [made.pending_frames(index) for index in range(3)] == [5, 5, 0]


def test_segments_exactly_one_segment_makes_no_second() -> None:
    assert len(plan(81, segment_frames=81, motion_frames=25).segments) == 1
    assert len(plan(82, segment_frames=81, motion_frames=25).segments) == 2
    assert len(plan(137, segment_frames=81, motion_frames=25).segments) == 2


def test_segments_no_frame_is_an_error() -> None:
    with pytest.raises(InputError, match="0 frames"):
        plan(0, segment_frames=81, motion_frames=25)
