"""The photo and CLIP's input; Pillow resizes."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from comfyui_multitalk.multitalk_core.errors import InputError
from comfyui_multitalk.multitalk_core.geometry import Size, cover_crop
from comfyui_multitalk.multitalk_core.inputs.photo import (
    prepare,
    resize_for_clip,
    to_photo,
)


def noise(*shape: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, shape, generator=generator, dtype=torch.uint8)


def pillow_resize(photo: Tensor, size: Size) -> Tensor:
    resized = Image.fromarray(photo.numpy()).resize(
        (size.width, size.height), resample=Image.Resampling.BILINEAR
    )
    return torch.from_numpy(np.array(resized))


def test_prepare_crops_the_centre_and_scales() -> None:
    photo, size = noise(50, 120, 3), Size(32, 48)
    crop = cover_crop(Size(50, 120), size=size)
    theirs = pillow_resize(photo, crop.resized)
    theirs = theirs[crop.top : crop.top + 32, crop.left : crop.left + 48]
    image = prepare(photo, size=size)
    assert image.shape == (1, 3, 1, 32, 48)
    assert image.dtype == torch.float32
    expected = (theirs.double() / 127.5 - 1).permute(2, 0, 1)[None, :, None]
    assert torch.allclose(image.double(), expected, atol=1e-6)


def test_prepare_without_a_photo_is_refused() -> None:
    with pytest.raises(InputError, match="to_photo"):
        prepare(torch.zeros(3, 32, 32), size=Size(16, 16))


def test_to_photo_keeps_eight_bit_values() -> None:
    photo = noise(5, 7, 3)
    before = photo.clone()
    assert torch.equal(to_photo(photo), photo)
    assert torch.equal(to_photo(photo.float() / 255), photo)
    assert torch.equal(to_photo(photo[None].float() / 255), photo)
    assert torch.equal(photo, before)


@pytest.mark.parametrize("shape", [(4, 6), (4, 6, 1)], ids=str)
def test_to_photo_one_channel_becomes_grey(shape: tuple[int, ...]) -> None:
    photo = to_photo(torch.full(shape, 0.4))
    assert photo.shape == (4, 6, 3)
    assert bool((photo == 102).all())


def test_to_photo_transparent_parts_become_white() -> None:
    image = torch.zeros(1, 3, 4)
    image[0, :, 3] = torch.tensor([0.0, 0.5, 1.0])
    assert to_photo(image)[0, :, 0].tolist() == [255, 128, 0]
    eight_bit = (image * 255).round().to(torch.uint8)
    assert to_photo(eight_bit)[0, :, 0].tolist() == [255, 127, 0]


def test_to_photo_of_a_batch_takes_the_first(caplog: pytest.LogCaptureFixture) -> None:
    batch = noise(2, 4, 4, 3)
    assert torch.equal(to_photo(batch), batch[0])
    assert "batch of 2 images" in caplog.text


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (torch.full((4, 4, 3), float("nan")), "NaN"),
        (torch.full((4, 4, 3), float("inf")), "infinite"),
        (torch.full((4, 4, 3), 200.0), "200"),
        (torch.full((4, 4, 3), -1.0), "-1"),
        (torch.zeros(0, 4, 3), "empty"),
        (torch.zeros(0, 4, 4, 3), r"\(0, 4, 4, 3\)"),
        (torch.zeros(4, 4, 2), r"\(4, 4, 2\)"),
        (torch.zeros(4), r"\(4,\)"),
        (torch.zeros(4, 4, 3, dtype=torch.int64), "int64"),
    ],
    ids=["nan", "inf", "255", "negative", "empty", "no_image", "two_channels", "flat", "int64"],
)
def test_to_photo_of_no_image_says_what_is_wrong(image: Tensor, message: str) -> None:
    with pytest.raises(InputError, match=message):
        to_photo(image)


def test_resize_for_clip_normalises_without_crop() -> None:
    image = torch.full((1, 3, 60, 200), -1.0)
    image[..., :2] = 1.0  # a mark at the very edge survives: nothing is cropped
    small = resize_for_clip(image)
    assert small.shape == (1, 3, 224, 224)
    mean = torch.tensor([0.48145466, 0.4578275, 0.40821073])
    std = torch.tensor([0.26862954, 0.26130258, 0.27577711])
    assert torch.allclose(small[0, :, 100, 200], -mean / std, atol=1e-6)
    assert torch.allclose(small[0, :, 100, 0], (1 - mean) / std, atol=0.2)


def test_resize_for_clip_is_bicubic_without_antialias() -> None:
    ramp = torch.zeros(1, 3, 448, 448)
    ramp[..., ::2] = 1.0  # samples fall halfway between neighbours
    small = resize_for_clip(ramp)
    mean, std = 0.48145466, 0.26862954
    assert torch.allclose(small[0, 0, :, 5:-5], torch.tensor((0.75 - mean) / std), atol=1e-5)
    step = torch.zeros(1, 3, 448, 448)
    step[..., 224:] = 1.0
    values = resize_for_clip(step)[0, 0, 0] * std + mean
    assert float(values.max()) > 1.03  # a cubic overshoots; a linear filter cannot
    assert float(values[100]) == pytest.approx(0.5, abs=1e-5)
