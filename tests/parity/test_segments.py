"""Upstream's division into segments ends where upstream's runs end."""

from __future__ import annotations

import pytest

from comfyui_multitalk.dev.parity.segments import upstream_plan


@pytest.mark.parametrize(
    ("audio", "method", "max_frames", "num_segments", "num_frames"),
    [
        pytest.param([19], "multitalk", 1000, 2, 16, id="three-frames-lost"),
        pytest.param([19, 18], "multitalk", 1000, 2, 16, id="first-speaker-decides"),
        pytest.param([19], "infinitetalk", 1000, 2, 19, id="infinitetalk-whole"),
        pytest.param([19, 18], "infinitetalk", 1000, 2, 18, id="last-speaker-decides"),
        pytest.param([19], "multitalk", 13, 1, 13, id="clip-mode"),
        pytest.param([30], "multitalk", 1000, 4, 27, id="more-segments"),
        pytest.param([30, 18], "multitalk", 15, 2, 0, id="empty-video"),
        pytest.param([21], "multitalk", 1000, 2, 18, id="audio-ends-with-a-segment"),
        pytest.param([30], "multitalk", 20, 2, 20, id="limit-without-missing-sound"),
    ],
)
def test_upstream_plan_ends_as_upstream(
    audio: list[int], method: str, max_frames: int, num_segments: int, num_frames: int
) -> None:
    made = upstream_plan(
        audio, method=method, segment_frames=13, motion_frames=5, max_frames=max_frames
    )
    assert len(made.segments) == num_segments
    assert made.num_frames == num_frames
    kept = [
        segment.start + frame
        for segment in made.segments
        for frame in range(segment.num_frames)[segment.keep]
    ]
    assert kept == list(range(num_frames))


def test_upstream_plan_cuts_hard() -> None:
    made = upstream_plan([30], method="multitalk", segment_frames=13, motion_frames=5)
    assert [made.pending_frames(index) for index in range(4)] == [0, 0, 0, 0]
