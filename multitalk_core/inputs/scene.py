"""The scene of one video: what is to be seen and what is to be heard.

First step of a video. `compose` makes the picture part, which is cheap and finds most mistakes;
the shells add the encoded speech and text and hand the `Scene` to the engine.

Letters: S speakers, H and W pixels, L text tokens, D their width.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from ..errors import InputError
from ..geometry import TOKEN_PIXELS, Box, Size
from .masks import fit_masks, speaker_masks, to_tokens
from .speech import Speech

PhotoAt = Callable[[int], Tensor]
"""From a video frame's number to the picture `(H0, W0, 3)` uint8 that it is conditioned on."""


class Picture(NamedTuple):
    """What is to be seen.

    Attributes:
        photo_at: The picture to condition on at each frame; for a photo always the same one.
        token_masks: Where each speaker is on the token grid, the background last,
            `(S + 1, H / 16 * W / 16)` bool; `None` for a single speaker, who is everywhere.
        size: Of the video, multiples of 16 pixels.
    """

    photo_at: PhotoAt
    token_masks: Tensor | None
    size: Size


class Text(NamedTuple):
    """Encoded prompts, `(1, L, D)` each; the model fills them up with zero rows.

    Attributes:
        prompt: What the video shows.
        negative: What it should not show; needed unless the text guidance is 1.
    """

    prompt: Tensor
    negative: Tensor | None


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Scene:
    """All that one video is made from.

    Attributes:
        picture: What is to be seen.
        speech: What is to be heard.
        text_at: From a segment's index to its prompts.
    """

    picture: Picture
    speech: Speech
    text_at: Callable[[int], Text]

    def __post_init__(self) -> None:
        masks, num_speakers = self.picture.token_masks, self.speech.num_speakers
        num_masks = 0 if masks is None else masks.shape[0]
        if num_speakers > 1 and num_masks != num_speakers + 1:
            raise InputError(
                f"{num_speakers} speakers need {num_speakers + 1} masks (the background last), but "
                f"{num_masks} were given. Compose the picture with one region per speaker."
            )

    def digests(self, photo: Tensor) -> dict[str, str]:
        """Give a digest of each input by its name; `photo` is the picture of frame 0.

        They tell whether a saved state belongs to this scene.
        """
        masks, text = self.picture.token_masks, self.text_at(0)
        return {
            "photo": _digest(photo),
            "speakers' masks": "none" if masks is None else _digest(masks),
            "voices": _digest(*self.speech.features),
            "prompt": _digest(text.prompt),
            "negative prompt": "none" if text.negative is None else _digest(text.negative),
        }


def compose(
    photo: Tensor | PhotoAt, regions: Sequence[Tensor | Box | None], *, size: Size
) -> Picture:
    """Place the speakers in the picture.

    Args:
        photo: `(H0, W0, 3)` uint8, or a function that gives such a picture for a frame number.
        regions: One per speaker, see `speaker_masks`.
        size: Of the video in pixels.

    Raises:
        InputError: If the size is no multiple of 16 pixels, or a region cannot be used.
    """
    if size.height % TOKEN_PIXELS or size.width % TOKEN_PIXELS:
        raise InputError(
            f"The size {size.width}x{size.height} is not a multiple of {TOKEN_PIXELS} pixels each "
            "way. Pass it through `snap_size` first."
        )
    photo_at = photo if not isinstance(photo, Tensor) else lambda _: photo
    token_masks = place_speakers(regions, photo=photo_at(0), size=size)
    return Picture(photo_at, token_masks if len(regions) > 1 else None, size)


def place_speakers(regions: Sequence[Tensor | Box | None], *, photo: Tensor, size: Size) -> Tensor:
    """Give the token masks `(S + 1, N)` of regions in a photo `(H0, W0, 3)`."""
    masks = speaker_masks(regions, photo=Size(*photo.shape[:2]))
    return to_tokens(fit_masks(masks, size=size))


def _digest(*tensors: Tensor) -> str:
    found = hashlib.sha256()
    for tensor in tensors:
        plain = tensor.detach().cpu().contiguous()
        found.update(f"{plain.dtype}{tuple(plain.shape)}".encode())
        found.update(plain.flatten().view(torch.uint8).numpy().tobytes())
    return found.hexdigest()[:16]
