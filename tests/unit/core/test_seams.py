"""Seams: what is faded, with which weights, and when a frame is final."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from comfyui_multitalk.multitalk_core.method.seams import fade, join
from comfyui_multitalk.multitalk_core.method.segments import SegmentPlan, plan


def shade(values: list[float]) -> Tensor:
    """Frames of one grey each, `(3, T, 2, 2)`."""
    return torch.tensor(values).view(1, -1, 1, 1).expand(3, -1, 2, 2)


def join_all(segments: SegmentPlan, frames: list[Tensor]) -> list[Tensor]:
    """Join given frames of all segments; what each of them adds."""
    parts, tail = [], None
    for index, (segment, given) in enumerate(zip(segments.segments, frames, strict=True)):
        joined = join(
            given, keep=segment.keep, tail=tail, num_pending=segments.pending_frames(index)
        )
        parts.append(joined.final)
        tail = joined.tail
    return parts


def numbered(made: SegmentPlan) -> list[Tensor]:
    """Every frame shows its place in the video, whichever segment shows it."""
    return [shade([float(place) for place in range(one.start, one.stop)]) for one in made.segments]


@pytest.mark.parametrize("motion_frames", [1, 5, 9])
def test_fade_has_equal_steps_from_one_showing_to_the_other(motion_frames: int) -> None:
    before, after = shade([0.0] * motion_frames), shade([1.0] * motion_frames)
    whole = torch.cat([before[:, :1], fade(before, after), after[:, :1]], dim=1)
    steps = whole.diff(dim=1)
    torch.testing.assert_close(steps, torch.full_like(steps, 1 / (motion_frames + 1)))


def test_fade_of_equal_showings_is_the_showing() -> None:
    frames = torch.randn(3, 5, 4, 4, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(fade(frames, frames), frames)


@pytest.mark.parametrize("num_frames", [1, 12, 13, 14, 21, 22, 29, 100])
@pytest.mark.parametrize("motion_frames", [1, 5, 9])
def test_join_gives_every_frame_once_and_in_order(num_frames: int, motion_frames: int) -> None:
    made = plan(num_frames, segment_frames=13, motion_frames=motion_frames)
    video = torch.cat(join_all(made, numbered(made)), dim=1)
    torch.testing.assert_close(video, shade([float(place) for place in range(num_frames)]))


def test_join_holds_back_only_the_frames_that_fade() -> None:
    made = plan(22, segment_frames=13, motion_frames=5)
    assert [part.shape[1] for part in join_all(made, numbered(made))] == [8, 8, 6]


def test_join_fades_the_motion_frames_and_no_other() -> None:
    made = plan(14, segment_frames=13, motion_frames=5)
    parts = join_all(made, [shade([0.0] * 13), shade([1.0] * 13)])
    expected = shade([0.0] * 8 + [step / 6 for step in range(1, 6)] + [1.0])
    torch.testing.assert_close(torch.cat(parts, dim=1), expected)


def test_join_segments_that_are_mostly_motion_frames_fade_twice() -> None:
    """A frame may be among the first of one segment and among the last of the same."""
    made = plan(14, segment_frames=9, motion_frames=5)
    parts = join_all(made, [shade([0.0] * 9), shade([1.0] * 9), shade([2.0] * 9)])
    assert [part.shape[1] for part in parts] == [4, 4, 6]
    twice = (5 / 6) * 5 / 6 + 2 / 6
    torch.testing.assert_close(parts[2][0, 0, 0, 0], torch.tensor(twice))


def test_join_without_fade_frames_cuts_hard() -> None:
    made = plan(19, segment_frames=13, motion_frames=5)._replace(fade_frames=0)
    parts = join_all(made, [shade([0.0] * 13), shade([1.0] * 13)])
    assert [part.shape[1] for part in parts] == [13, 6]
    assert torch.equal(torch.cat(parts, dim=1), shade([0.0] * 13 + [1.0] * 6))


def test_join_shares_no_memory_with_the_frames_and_leaves_them_alone() -> None:
    frames, tail = shade([1.0] * 9).clone(), shade([0.0] * 5).clone()
    joined = join(frames, keep=slice(5, 9), tail=tail, num_pending=5)
    joined.final.zero_()
    assert torch.equal(frames, shade([1.0] * 9))
    assert torch.equal(tail, shade([0.0] * 5))
    assert torch.equal(joined.tail[:, 1:], shade([1.0] * 4))
