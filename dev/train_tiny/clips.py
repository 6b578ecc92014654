"""Training clips: drawn people whose mouths follow voices, with everything known about them.

    faces + voices -> frames, prompt, what each speaker says, where each speaker is

The order of the speakers is random in every clip, so that a speaker's number does not tell the
place in the picture; otherwise the model would learn places instead of L-RoPE labels. In some
clips the prompt names another wall than the photo shows, and the wall turns into that colour.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ...multitalk_core.geometry import PIXEL_STRIDE, Box, Size
from ...multitalk_core.inputs.masks import fit_masks, speaker_masks, to_tokens
from . import drawing
from .faces import BACKGROUND, Faces, prompt, sample_faces
from .features import VoiceFeatures
from .motion import Motion, sample_motion

SIZES = {1: Size(128, 128), 2: Size(128, 192)}
"""Of pictures with one person and with two."""
MOTION_FRAMES = 5
"""Frames a later segment takes over, in training and in use."""
PREFIX_FRAMES = 8
"""Frames drawn before a clip; with the first five of the clip they are what went before."""
WINDOW_RADIUS = 2
"""Features heard on each side of a frame."""

_SILENT = {1: 0.1, 2: 0.5}
"""Part of the clips in which somebody is silent; of two people it is one of them."""
_PAINTED = 0.25
"""Part of the clips whose prompt names another wall than the photo shows."""
_FADE_FRAMES = 6
_START_FRAMES = 4
"""From the mouth of the photo to that of the voice."""
_BOX_JITTER = 7.0
"""Of the edges of a face box, in pixels: people draw boxes loosely."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Clips:
    """B clips of T frames.

    Attributes:
        video: `(B, 3, T, H, W)` in [-1, 1]; clips with motion frames have P more, before
            the others.
        prompts: Prompt of each.
        painted: Whether the prompt names another wall than the photo shows, `(B,)` bool.
        features: Each speaker's, from 2 frames before the clip to 2 after, `(B, S, T + 4, L, C)`.
        opening: How far each speaker's mouth is open, `(B, S, T)`.
        masks: Where each speaker is, then the background, `(B, S + 1, tokens of a frame)` bool.
        mouths: Latent cells that a mouth touches, `(B, H / 8, W / 8)` bool.
        order: Place of each speaker in the picture, from the left, `(B, S)`.
    """

    video: Tensor
    prompts: list[str]
    painted: Tensor
    features: Tensor
    opening: Tensor
    masks: Tensor
    mouths: Tensor
    order: Tensor


class Speech:
    """Cuts pieces of speech out of voices."""

    def __init__(self, voices: Mapping[str, VoiceFeatures], names: Sequence[str]) -> None:
        """Choose voices by name; `voices` holds the features of silence as "silence"."""
        self._voices = [voices[name] for name in names]
        self._silence = voices["silence"]

    def cut(
        self, num_frames: int, *, silent: bool, generator: torch.Generator
    ) -> tuple[Tensor, Tensor]:
        """Give features `(num_frames + 4, L, C)` and mouth curves `(P + num_frames, 2)`.

        The curves begin `PREFIX_FRAMES` before the clip, the features 2 frames before.
        """
        voice = self._voices[_whole(len(self._voices), generator)]
        if silent:
            return self._cut_silence(voice, num_frames, generator=generator)
        latest = len(voice.articulation) - num_frames - WINDOW_RADIUS
        start = PREFIX_FRAMES + _whole(latest - PREFIX_FRAMES, generator)
        stop = start + num_frames
        heard = voice.features[start - WINDOW_RADIUS : stop + WINDOW_RADIUS]
        return heard, voice.articulation[start - PREFIX_FRAMES : stop]

    def _cut_silence(
        self, voice: VoiceFeatures, num_frames: int, *, generator: torch.Generator
    ) -> tuple[Tensor, Tensor]:
        """Repeat a pause of the voice, or take an empty track."""
        frames = torch.arange(num_frames + 2 * WINDOW_RADIUS)
        curves = torch.zeros(PREFIX_FRAMES + num_frames, 2)
        pause = _longest_pause(voice.articulation[:, 0])
        if pause is None or _whole(2, generator):
            start = _whole(len(self._silence.features), generator)
            return self._silence.features[(start + frames) % len(self._silence.features)], curves
        first, length = pause
        return voice.features[first + (_whole(length, generator) + frames) % length], curves


def draw_clips(
    count: int,
    *,
    people: int,
    num_frames: int,
    moving: bool,
    speech: Speech,
    generator: torch.Generator,
    device: torch.device | str = "cpu",
) -> Clips:
    """Draw clips.

    Args:
        count: Number of clips B.
        people: Speakers S in each, 1 or 2.
        num_frames: Frames T, 4n + 1.
        moving: Whether the clips start with motion frames; the wall then has its colour already.
        speech: Source of the speech.
        generator: Source of all randomness, on the CPU.
        device: Where to paint.
    """
    size = SIZES[people]
    faces = sample_faces(count, people=people, generator=generator)
    order = torch.stack([torch.randperm(people, generator=generator) for _ in range(count)])
    heard, curves = speak(count, people, num_frames, speech=speech, generator=generator)
    opening = curves[:, :, PREFIX_FRAMES:, 0]
    if not moving:
        curves = _begin_anyhow(curves[:, :, PREFIX_FRAMES:], generator=generator)
    placed = torch.empty_like(curves).scatter_(1, order[:, :, None, None].expand_as(curves), curves)
    motion = sample_motion(count, people=people, frames=curves.shape[2], generator=generator)
    motion = replace(motion, articulation=placed)
    painted = torch.rand(count, generator=generator) < _PAINTED
    after = _repaint(faces, painted, generator=generator)
    fading = painted & (not moving)
    boxes = drawing.boxes(faces, motion, size=size)
    return Clips(
        video=_paint(faces, after, motion, fading=fading, size=size, device=device),
        prompts=[prompt(after, i) for i in range(count)],
        painted=painted,
        features=heard,
        opening=opening,
        masks=region_tokens(boxes.faces, order, size=size, generator=generator),
        mouths=_cells(boxes.mouths[:, :, -num_frames:], size=size),
        order=order,
    )


def speak(
    count: int, people: int, num_frames: int, *, speech: Speech, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Give features `(B, S, T + 4, L, C)` and curves `(B, S, P + T, 2)` of every speaker."""
    heard, curves = [], []
    for _ in range(count):
        pause = bool(torch.rand((), generator=generator) < _SILENT[people])
        quiet = _whole(people, generator) if pause else None
        for i_speaker in range(people):
            part = speech.cut(num_frames, silent=i_speaker == quiet, generator=generator)
            heard.append(part[0])
            curves.append(part[1])
    shape = (count, people)
    return torch.stack(heard).unflatten(0, shape), torch.stack(curves).unflatten(0, shape)


def _begin_anyhow(curves: Tensor, *, generator: torch.Generator) -> Tensor:
    """Close half of the mouths in the first frame and open the others at random, as in photos."""
    shape = curves.shape[:2]
    width = torch.rand(shape, generator=generator) - 0.5
    open_ = torch.rand(shape, generator=generator) * torch.randint(2, shape, generator=generator)
    photo = torch.stack((open_, width), dim=-1)[:, :, None]
    frame = torch.arange(curves.shape[2])
    return torch.lerp(photo, curves, (frame / _START_FRAMES).clamp(0, 1)[:, None])


def _repaint(faces: Faces, painted: Tensor, *, generator: torch.Generator) -> Faces:
    """Give the marked pictures another wall."""
    colours = torch.tensor(tuple(BACKGROUND.values()))
    step = 1 + torch.randint(len(colours) - 1, painted.shape, generator=generator)
    other = (faces.background_name + step) % len(colours)
    shade = torch.rand((len(painted), 1), generator=generator) * 0.14 + 0.02
    wall = torch.stack((colours[other] + shade / 2, colours[other] - shade), dim=1).clamp(0, 1)
    return replace(
        faces,
        background_name=torch.where(painted, other, faces.background_name),
        background=torch.where(painted[:, None, None], wall, faces.background),
    )


def _paint(
    faces: Faces,
    after: Faces,
    motion: Motion,
    *,
    fading: Tensor,
    size: Size,
    device: torch.device | str,
) -> Tensor:
    """Paint frames `(B, 3, T, H, W)`; marked clips start with another wall, which fades."""
    motion = motion.to(device)
    video = drawing.render(after.to(device), motion, size=size)
    which = fading.nonzero()[:, 0]
    if not len(which):
        return video
    short = Motion(
        articulation=motion.articulation[which, :, :_FADE_FRAMES],
        pose=motion.pose[which, :, :_FADE_FRAMES],
        blink=motion.blink[which, :, :_FADE_FRAMES],
    )
    before = drawing.render(faces.take(which).to(device), short, size=size)
    share = torch.arange(_FADE_FRAMES, device=device).view(1, 1, -1, 1, 1) / _FADE_FRAMES
    start = video[which, :, :_FADE_FRAMES]
    video[which, :, :_FADE_FRAMES] = torch.lerp(before, start, share)
    return video


def region_tokens(
    boxes: Tensor, order: Tensor, *, size: Size, generator: torch.Generator
) -> Tensor:
    """Give token masks: halves of the picture for half of the clips, loose boxes for the others."""
    masks = []
    for faces, places in zip(boxes, order, strict=True):
        regions: list[Tensor | Box | None] = [None] * len(places)
        if len(places) > 1 and _whole(2, generator):
            loose = faces[places] + _BOX_JITTER * (2 * torch.rand((1, 4), generator=generator) - 1)
            regions = [_inside(box, size) for box in loose.round().int().tolist()]
        tokens = to_tokens(fit_masks(speaker_masks(regions, photo=size), size=size))
        if regions[0] is None:
            tokens = torch.cat((tokens[:-1][places], tokens[-1:]))
        masks.append(tokens)
    return torch.stack(masks)


def _inside(box: Sequence[int], size: Size) -> Box:
    left, top, right, bottom = box
    return Box(max(left, 0), max(top, 0), min(right, size.width), min(bottom, size.height))


def _cells(mouths: Tensor, *, size: Size) -> Tensor:
    """Mark the latent cells that a mouth touches at any time, `(B, h, w)`."""
    low = mouths[..., :2].amin(dim=2) / PIXEL_STRIDE
    high = mouths[..., 2:].amax(dim=2) / PIXEL_STRIDE
    x = torch.arange(size.width // PIXEL_STRIDE) + 0.5
    y = torch.arange(size.height // PIXEL_STRIDE) + 0.5
    across = (x > low[..., :1] - 0.25) & (x < high[..., :1] + 0.25)
    along = (y > low[..., 1:] - 0.25) & (y < high[..., 1:] + 0.25)
    return (along[..., :, None] & across[..., None, :]).any(dim=1)


def _longest_pause(opening: Tensor) -> tuple[int, int] | None:
    """Give start and length of the longest stretch with a closed mouth, if at least 8 frames."""
    shut = torch.nn.functional.pad((opening == 0).int(), (1, 1)).diff()
    starts, stops = (shut == 1).nonzero()[:, 0], (shut == -1).nonzero()[:, 0]
    lengths = stops - starts
    if not len(lengths) or int(lengths.max()) < PREFIX_FRAMES:
        return None
    longest = int(lengths.argmax())
    return int(starts[longest]), int(lengths[longest])


def _whole(below: int, generator: torch.Generator) -> int:
    return int(torch.randint(below, (), generator=generator))
