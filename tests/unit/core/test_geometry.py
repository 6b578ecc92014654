"""Sizes in pixels, latents and tokens."""

from __future__ import annotations

import pytest

from comfyui_multitalk.multitalk_core.errors import InputError
from comfyui_multitalk.multitalk_core.geometry import (
    GridSize,
    Resolution,
    Size,
    aspect_size,
    bucket_size,
    cover_crop,
    latent_frames,
    snap_size,
    token_grid,
    video_size,
)


@pytest.mark.parametrize(
    ("photo", "resolution", "size"),
    [
        (Size(500, 500), "480p", Size(640, 640)),
        (Size(1080, 1920), "480p", Size(448, 896)),
        (Size(1080, 1920), "720p", Size(704, 1280)),
        (Size(1920, 1080), "480p", Size(832, 448)),
        (Size(3000, 2000), "720p", Size(1152, 768)),
        (Size(10, 1000), "480p", Size(320, 1216)),
    ],
)
def test_bucket_size_takes_the_nearest_aspect(photo: Size, resolution: str, size: Size) -> None:
    assert bucket_size(photo, resolution=resolution) == size  # type: ignore[arg-type]


def test_bucket_size_buckets_are_whole_tokens() -> None:
    for ratio in range(20, 410):
        for resolution in ("480p", "720p"):
            size = bucket_size(Size(ratio, 100), resolution=resolution)  # type: ignore[arg-type]
            assert size.height % 16 == size.width % 16 == 0


@pytest.mark.parametrize(
    ("size", "snapped"),
    [
        (Size(480, 832), Size(480, 832)),
        (Size(487, 840), Size(480, 848)),
        (Size(488, 7), Size(496, 16)),
    ],
)
def test_snap_size_rounds_to_sixteen(size: Size, snapped: Size) -> None:
    assert snap_size(size) == snapped


@pytest.mark.parametrize("size", [Size(0, 16), Size(16, -16)])
def test_snap_size_without_pixels_is_refused(size: Size) -> None:
    with pytest.raises(InputError, match=f"{size.width}x{size.height}"):
        snap_size(size)


def test_aspect_size_keeps_the_aspect() -> None:
    assert aspect_size(Size(1000, 2000), longest_side=640) == Size(320, 640)
    assert aspect_size(Size(900, 300), longest_side=500) == Size(496, 160)


@pytest.mark.parametrize(
    ("wanted", "size", "warning"),
    [
        ("480p", Size(448, 896), ""),
        (640, Size(320, 640), ""),
        (650, Size(320, 656), "a longest side of 650 pixels is no multiple of 16"),
        (Size(480, 832), Size(480, 832), ""),
        (Size(39, 50), Size(32, 48), "50x39 pixels is no multiple of 16; the video is 48x32."),
        (Size(4096, 4096), Size(4096, 4096), ""),
    ],
)
def test_video_size_is_the_nearest_and_says_what_it_changes(
    wanted: Resolution | Size | int, size: Size, warning: str, caplog: pytest.LogCaptureFixture
) -> None:
    assert video_size(Size(1000, 2000), wanted=wanted) == size
    assert warning in caplog.text
    assert bool(caplog.text) == bool(warning)


@pytest.mark.parametrize(
    ("wanted", "asked"),
    [
        (Size(100_000, 100_000), "100000x100000"),
        (4097, "a longest side of 4097"),
        (10**400, "a longest side of 1000"),
        (Size(10**400, 16), "16x1000"),
    ],
    ids=["both sides", "longest", "longest beyond floats", "height beyond floats"],
)
def test_video_size_too_large_is_refused_with_the_limit(wanted: Size | int, asked: str) -> None:
    with pytest.raises(InputError, match=f"{asked}.*at most 4096 pixels a side"):
        video_size(Size(1000, 2000), wanted=wanted)


def test_cover_crop_covers_and_cuts_the_centre() -> None:
    crop = cover_crop(Size(100, 300), size=Size(64, 64))
    assert crop.resized == Size(64, 192)
    assert (crop.top, crop.left) == (0, 64)


def test_cover_crop_rounds_half_pixels_to_even() -> None:
    # a spare of 1, 3 or 5 columns: 0.5, 1.5 and 2.5 round to 0, 2 and 2, as torchvision's
    lefts = [cover_crop(Size(16, 16 + spare), size=Size(16, 16)).left for spare in (1, 3, 5)]
    assert lefts == [0, 2, 2]


def test_token_grid_of_upstreams_default() -> None:
    assert latent_frames(81) == 21
    assert token_grid(81, Size(480, 832)) == GridSize(21, 30, 52)
