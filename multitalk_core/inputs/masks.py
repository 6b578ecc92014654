"""Speaker masks: where each speaker is, from the photo's pixels to the token grid.

Follows the mask part of `generate` in MultiTalk `wan/multitalk.py`. The last mask is always the
background: the pixels that no speaker covers. With one speaker the method uses no mask, so the
speaker's mask is the whole picture.

Departures: boxes are given by column and row (upstream's x is the row); where masks overlap, the
pixels belong to the later speaker (upstream: to both); a mask that covers no token is an error
(upstream's video becomes NaN).
"""

from __future__ import annotations

import logging
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional

from ..errors import InputError
from ..geometry import PIXEL_STRIDE, TOKEN_PIXELS, Box, Size, cover_crop

FACE_MARGIN = 0.05
"""Margin of the default masks, as a share of the width or height of each half."""
_SUSPICIOUS_SHARE = 0.6
"""Share of the photo above which a mask of one of several speakers is probably inverted."""
_SAME_SHAPE = 1.02
"""Ratio of the horizontal and the vertical scale up to which a mask has the photo's shape."""

log = logging.getLogger(__name__)


def speaker_masks(regions: Sequence[Tensor | Box | None], *, photo: Size) -> Tensor:
    """Turn each speaker's region into a mask, and the remaining pixels into the background's.

    Args:
        regions: One per speaker: a mask `(H, W)` or `(1, H, W)` (float, on from 0.5; or bool or
            integers, on from 1; another size than the photo's is resized), a box in pixels of the
            photo, or `None`. Two speakers without regions get the left and the right half.
        photo: The photo's size in pixels.

    Returns:
        Masks `(S + 1, H0, W0)` bool, no two of which overlap; the background last.

    Raises:
        InputError: If there is no speaker, or a region is missing, empty, no mask at all, outside
            the photo or covered by a later speaker's.
    """
    if not regions:
        raise InputError("There is no speaker. Connect at least one speaker with a voice.")
    if len(regions) == 1:
        if regions[0] is not None:
            log.warning(
                "The only speaker's mask or box is ignored: one voice moves the whole picture."
            )
        whole = torch.ones(1, *photo, dtype=torch.bool)
        return torch.cat((whole, ~whole))
    given = enumerate(_with_defaults(regions, photo=photo), start=1)
    masks = torch.stack([_region_mask(region, number=n, photo=photo) for n, region in given])
    for i_speaker in range(len(masks) - 1):
        masks[i_speaker] = _without_later(masks, i_speaker)
    return torch.cat((masks, ~masks.any(dim=0, keepdim=True)))


def fit_masks(masks: Tensor, *, size: Size) -> Tensor:
    """Resize and crop masks as `photo.prepare` does; sample them on the latent grid (nearest).

    Args:
        masks: `(S + 1, H0, W0)` at the photo's size.
        size: The video's size in pixels.

    Returns:
        Masks `(S + 1, H / 8, W / 8)` float32 of 0 and 1.
    """
    crop = cover_crop(Size(*masks.shape[1:]), size=size)
    resized = functional.interpolate(masks[None].byte(), size=crop.resized, mode="nearest")
    cropped = resized[:, :, crop.top : crop.top + size.height, crop.left : crop.left + size.width]
    latent_size = (size.height // PIXEL_STRIDE, size.width // PIXEL_STRIDE)
    return (functional.interpolate(cropped, size=latent_size, mode="nearest")[0] > 0).float()


def to_tokens(masks: Tensor) -> Tensor:
    """Sample latent masks on the token grid, at the top left latent of each 2x2.

    Args:
        masks: `(S + 1, h, w)` on the latent grid, both sides even.

    Returns:
        Token masks `(S + 1, (h / 2) * (w / 2))` bool.

    Raises:
        InputError: If a speaker's mask covers no token; the message names the speaker.
    """
    tokens = (masks[:, ::2, ::2] > 0).flatten(start_dim=1)
    for i_speaker, mask in enumerate(tokens[:-1]):
        if not bool(mask.any()):
            height, width = (side * PIXEL_STRIDE for side in masks.shape[1:])
            raise InputError(
                f"Speaker {i_speaker + 1}'s mask holds no token of the {width}x{height} video: it "
                f"is smaller than {TOKEN_PIXELS}x{TOKEN_PIXELS} pixels, or was cropped off at an "
                "edge. Give a larger mask or box, nearer to the centre."
            )
    return tokens


def _with_defaults(regions: Sequence[Tensor | Box | None], *, photo: Size) -> list[Tensor | Box]:
    given = [region for region in regions if region is not None]
    if len(given) == len(regions):
        return given
    if given or len(regions) > 2:
        numbers = ", ".join(str(i + 1) for i, region in enumerate(regions) if region is None)
        raise InputError(
            f"Speaker {numbers} has neither mask nor box, so it is unclear which face is meant. "
            "Give one to every speaker (two speakers may both go without: left and right half)."
        )
    half = photo.width // 2
    top, bottom = int(photo.height * FACE_MARGIN), int(photo.height * (1 - FACE_MARGIN))
    return [
        Box(int(half * FACE_MARGIN + offset), top, int(half * (1 - FACE_MARGIN) + offset), bottom)
        for offset in (0, half)
    ]


def _region_mask(region: Tensor | Box, *, number: int, photo: Size) -> Tensor:
    mask = (
        _box_mask(region, number, photo)
        if isinstance(region, Box)
        else _drawn_mask(region, number, photo)
    )
    share = float(mask.sum()) / mask.numel()
    if not share:
        raise InputError(
            f"Speaker {number}'s mask is empty. Paint the speaker's face, or give a box."
        )
    if share > _SUSPICIOUS_SHARE:
        log.warning(
            "Speaker %d's mask covers %.0f %% of the photo; is it inverted? It must be white where "
            "the speaker is.",
            number,
            100 * share,
        )
    return mask


def _box_mask(box: Box, number: int, photo: Size) -> Tensor:
    inside = 0 <= box.left < box.right <= photo.width and 0 <= box.top < box.bottom <= photo.height
    if not inside:
        raise InputError(
            f"Speaker {number}'s box (left {box.left}, top {box.top}, right {box.right}, bottom "
            f"{box.bottom}) does not lie in the photo of {photo.width}x{photo.height} pixels. "
            f"Give 0 <= left < right <= {photo.width} and 0 <= top < bottom <= {photo.height}."
        )
    mask = torch.zeros(photo, dtype=torch.bool)
    mask[box.top : box.bottom, box.left : box.right] = True
    return mask


def _drawn_mask(region: Tensor, number: int, photo: Size) -> Tensor:
    mask = region[0] if region.ndim == 3 and region.shape[0] == 1 else region
    if mask.ndim != 2 or mask.numel() == 0:
        raise InputError(
            f"Speaker {number}'s mask has the shape {tuple(region.shape)}; one mask (height, "
            "width) is needed."
        )
    if bool(mask.isnan().any()):
        raise InputError(f"Speaker {number}'s mask holds NaN. Check the step that made the mask.")
    mask = (mask >= 0.5 if mask.is_floating_point() else mask != 0).cpu()
    if tuple(mask.shape) != tuple(photo):
        scale = photo.height / mask.shape[0], photo.width / mask.shape[1]
        if max(scale) > _SAME_SHAPE * min(scale):
            log.warning(
                "Speaker %d's mask of %dx%d pixels has another shape than the photo of %dx%d; it "
                "is stretched to it.",
                number,
                mask.shape[1],
                mask.shape[0],
                photo.width,
                photo.height,
            )
        mask = (
            functional.interpolate(mask[None, None].float(), size=photo, mode="nearest")[0, 0] > 0
        )
    return mask


def _without_later(masks: Tensor, i_speaker: int) -> Tensor:
    """Remove the pixels of later speakers from one speaker's mask, with a warning."""
    mask = masks[i_speaker]
    later = masks[i_speaker + 1 :].any(dim=0)
    kept = mask & ~later
    lost = 100 * (1 - float(kept.sum()) / float(mask.sum()))
    if not bool(kept.any()):
        raise InputError(
            f"Speaker {i_speaker + 1}'s mask is covered by the masks of later speakers, which "
            f"cover {100 * float(later.sum()) / later.numel():.0f} % of the photo. Give masks that "
            "do not overlap, white where the speaker is."
        )
    if lost > 0:
        log.warning(
            "%.1f %% of speaker %d's mask is also a later speaker's; the later speaker gets it.",
            lost,
            i_speaker + 1,
        )
    return kept
