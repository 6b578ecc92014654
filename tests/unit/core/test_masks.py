"""Speaker masks, from boxes and drawings to tokens."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from comfyui_multitalk.multitalk_core.errors import InputError
from comfyui_multitalk.multitalk_core.geometry import Box, Size
from comfyui_multitalk.multitalk_core.inputs.masks import fit_masks, speaker_masks, to_tokens

PHOTO = Size(40, 60)
LEFT, RIGHT = Box(5, 10, 20, 30), Box(35, 10, 50, 30)


def drawn(box: Box, photo: Size = PHOTO) -> Tensor:
    mask = torch.zeros(photo)
    mask[box.top : box.bottom, box.left : box.right] = 1
    return mask


def test_speaker_masks_box_counts_columns_then_rows() -> None:
    masks = speaker_masks([LEFT, RIGHT], photo=PHOTO)
    assert masks.shape == (3, 40, 60)
    assert masks.dtype == torch.bool
    assert torch.equal(masks[0], drawn(LEFT).bool())
    assert torch.equal(masks[1], drawn(RIGHT).bool())
    assert torch.equal(masks[2], ~(masks[0] | masks[1]))


def test_speaker_masks_drawn_mask_equals_its_box() -> None:
    boxes = speaker_masks([LEFT, RIGHT], photo=PHOTO)
    batch = drawn(LEFT)[None] * 0.5
    before = batch.clone()
    assert torch.equal(speaker_masks([batch, drawn(RIGHT).bool()], photo=PHOTO), boxes)
    assert torch.equal(batch, before)
    eight_bit = (drawn(RIGHT) * 255).to(torch.uint8)
    assert torch.equal(speaker_masks([LEFT, eight_bit], photo=PHOTO), boxes)


def test_speaker_masks_faint_strokes_do_not_count() -> None:
    faint = drawn(LEFT) + 0.4 * drawn(Box(0, 0, 60, 5))
    assert torch.equal(speaker_masks([faint, RIGHT], photo=PHOTO)[0], drawn(LEFT).bool())


def test_speaker_masks_of_another_size_is_resized() -> None:
    small = torch.zeros(20, 30)
    small[5:15, 2:10] = 1
    masks = speaker_masks([small, RIGHT], photo=PHOTO)
    assert torch.equal(masks[0], drawn(Box(4, 10, 20, 30)).bool())


def test_speaker_masks_one_speaker_is_the_whole_picture(caplog: pytest.LogCaptureFixture) -> None:
    masks = speaker_masks([None], photo=PHOTO)
    assert bool(masks[0].all())
    assert not bool(masks[1].any())
    assert not caplog.text
    assert torch.equal(speaker_masks([LEFT], photo=PHOTO), masks)
    assert "ignored" in caplog.text


def test_speaker_masks_two_without_regions_get_the_halves() -> None:
    masks = speaker_masks([None, None], photo=Size(100, 201))
    # upstream: 5 % free at every edge of each half; an odd last column belongs to no half
    assert torch.equal(masks[0], drawn(Box(5, 5, 95, 95), Size(100, 201)).bool())
    assert torch.equal(masks[1], drawn(Box(105, 5, 195, 95), Size(100, 201)).bool())


def test_speaker_masks_overlap_goes_to_the_later_speaker(
    caplog: pytest.LogCaptureFixture,
) -> None:
    first, second = Box(0, 0, 40, 20), Box(30, 0, 60, 20)
    masks = speaker_masks([first, second], photo=PHOTO)
    assert torch.equal(masks[0], drawn(Box(0, 0, 30, 20)).bool())
    assert torch.equal(masks[1], drawn(second).bool())
    assert bool((masks.sum(dim=0) == 1).all())
    assert "25.0 % of speaker 1's mask" in caplog.text


def test_speaker_masks_of_another_shape_than_the_photo_is_said(
    caplog: pytest.LogCaptureFixture,
) -> None:
    square = torch.zeros(40, 40)
    square[10:30, 4:14] = 1
    masks = speaker_masks([square, RIGHT], photo=PHOTO)
    assert torch.equal(masks[0], drawn(Box(6, 10, 21, 30)).bool())
    assert caplog.messages == [
        "Speaker 1's mask of 40x40 pixels has another shape than the photo of 60x40; it is "
        "stretched to it."
    ]
    caplog.clear()
    speaker_masks([drawn(Box(8, 20, 40, 60), Size(80, 120)), RIGHT], photo=PHOTO)
    assert not caplog.messages  # another size of the same shape


def test_speaker_masks_inverted_is_said_by_percentage(caplog: pytest.LogCaptureFixture) -> None:
    speaker_masks([1 - drawn(LEFT), LEFT], photo=PHOTO)
    assert caplog.messages == [
        "Speaker 1's mask covers 88 % of the photo; is it inverted? It must be white where the "
        "speaker is."
    ]


def test_speaker_masks_full_is_said_by_percentage(caplog: pytest.LogCaptureFixture) -> None:
    with pytest.raises(InputError, match=r"later speakers, which cover 100 % of the photo"):
        speaker_masks([LEFT, torch.ones(PHOTO)], photo=PHOTO)
    assert "Speaker 2's mask covers 100 % of the photo" in caplog.text


def test_speaker_masks_without_overlap_warns_of_nothing(caplog: pytest.LogCaptureFixture) -> None:
    speaker_masks([LEFT, RIGHT], photo=PHOTO)
    assert not caplog.text


@pytest.mark.parametrize(
    ("regions", "message"),
    [
        ([], "no speaker"),
        ([LEFT, None], "Speaker 2 has neither"),
        ([None, None, None], "Speaker 1, 2, 3 has neither"),
        ([LEFT, torch.zeros(PHOTO)], "Speaker 2's mask is empty"),
        ([torch.full(PHOTO, float("nan")), RIGHT], "Speaker 1's mask holds NaN"),
        ([torch.zeros(2, 40, 60), RIGHT], r"Speaker 1's mask has the shape \(2, 40, 60\)"),
        ([torch.zeros(0, 60), RIGHT], r"Speaker 1's mask has the shape \(0, 60\)"),
        ([LEFT, LEFT], "Speaker 1's mask is covered"),
    ],
    ids=["none", "one_missing", "three", "empty", "nan", "two_masks", "no_pixels", "covered"],
)
def test_speaker_masks_of_bad_regions_name_the_speaker(
    regions: list[Tensor | Box | None], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        speaker_masks(regions, photo=PHOTO)


@pytest.mark.parametrize(
    "box",
    [Box(-1, 0, 9, 9), Box(0, -1, 9, 9), Box(0, 0, 61, 9), Box(0, 0, 9, 41), Box(9, 0, 9, 9)],
    ids=["left", "top", "right", "bottom", "empty"],
)
def test_speaker_masks_box_outside_the_photo_is_refused(box: Box) -> None:
    with pytest.raises(InputError, match=r"Speaker 2's box .* 60x40"):
        speaker_masks([LEFT, box], photo=PHOTO)


def test_fit_masks_follows_the_photos_crop() -> None:
    # 40x120 covers 32x32 at 32x96: columns 32 to 64 of it, the photo's 40 to 80, remain
    masks = torch.zeros(2, 40, 120)
    masks[0, :, 40:60] = 1
    masks[1, :, :40] = 1
    fitted = fit_masks(masks, size=Size(32, 32))
    assert fitted.shape == (2, 4, 4)
    assert fitted.dtype == torch.float32
    assert fitted[0].tolist() == [[1, 1, 0, 0]] * 4
    assert not bool(fitted[1].any())


def test_masks_half_frame_selects_left_tokens() -> None:
    masks = speaker_masks([Box(0, 0, 32, 64), Box(32, 0, 64, 64)], photo=Size(64, 64))
    tokens = to_tokens(fit_masks(masks, size=Size(64, 64)))
    assert tokens.shape == (3, 16)
    assert tokens.dtype == torch.bool
    assert tokens[0].view(4, 4).tolist() == [[True, True, False, False]] * 4
    assert torch.equal(tokens[1], ~tokens[0])
    assert not bool(tokens[2].any())


def test_to_tokens_takes_the_top_left_latent() -> None:
    masks = torch.zeros(2, 4, 4)
    masks[0, 2, 0] = 1
    assert to_tokens(masks)[0].tolist() == [False, False, True, False]


def test_to_tokens_without_a_token_names_the_speaker() -> None:
    masks = torch.ones(3, 4, 6)
    masks[1] = 0
    masks[1, 1::2] = 1  # latents that no token samples
    with pytest.raises(InputError, match="Speaker 2's mask holds no token of the 48x32 video"):
        to_tokens(masks)
