"""The method from photo and speech to video, as one recipe: `generate`.

Plan the segments; for each one: condition on the picture, make audio tokens, sample, decode, match
the colours, join, hand over the final frames. Follows MultiTalk `wan/multitalk.py:generate` (paper
arXiv:2505.22647) and InfiniteTalk's `generate_infinitetalk`. Departures: the video is as long as
the sound (`segments.py`), and segments fade into each other (`seams.py`). Encoders and weights
belong to the caller; only tensors move here.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Generator, Tensor

from .config import SamplingConfig
from .errors import InputError
from .geometry import PIXEL_STRIDE, TOKEN_PIXELS, Size, latent_frames
from .inputs.masks import fit_masks, to_tokens
from .inputs.photo import prepare
from .method.color import match_color_
from .method.conditioning import condition_segment, draw_noise
from .method.guidance import needs_negative_text
from .method.sampler import OnSolverStep, SegmentModel, Solver, require_finite, solve
from .method.seams import join
from .method.segments import Segment, SegmentPlan, plan
from .model.attention import PLAIN, Attends
from .model.audio_tokens import window_features
from .model.dit import MultiTalkModel
from .protocols import ImageEncoder, VideoVAE

_LATENT_CHANNELS = 16

_log = logging.getLogger(__name__)


class Step(NamedTuple):
    """Progress after one sampling step.

    Attributes:
        segment: Index of the segment, from 0.
        num_segments: Segments of the video.
        step: Index of the step just done, from 0.
        num_steps: Steps of this segment.
        latents: The clean latents the step points to, `(1, 16, F, h, w)` float32, for previews.
    """

    segment: int
    num_segments: int
    step: int
    num_steps: int
    latents: Tensor


@dataclass(frozen=True, kw_only=True, slots=True)
class Speech:
    """What is said in the video.

    Attributes:
        features: Wav2Vec2 layers at 25 Hz for each speaker, `(T, L, C)`; T should reach
            `segments.TAIL_FRAMES` of silence beyond the video, else the last frame is repeated.
        num_frames: Frames of the video.
    """

    features: tuple[Tensor, ...]
    num_frames: int

    def __post_init__(self) -> None:
        if not self.features:
            raise InputError("There is no speaker. Give at least one voice.")
        if len({tuple(one.shape[1:]) for one in self.features}) > 1:
            shapes = ", ".join(str(tuple(one.shape)) for one in self.features)
            raise InputError(
                f"The speakers' audio features have different sizes ({shapes}). "
                "Take all of them with the same Wav2Vec2 model."
            )
        for number, one in enumerate(self.features, start=1):
            if not bool(one.isfinite().all()):
                raise InputError(
                    f"The audio features of speaker {number} hold NaN or infinite numbers. "
                    "Give another recording, or run Wav2Vec2 in float32."
                )

    @property
    def num_speakers(self) -> int:
        """Speakers, 1 or 2."""
        return len(self.features)

    def windows(self, segment: Segment) -> Tensor:
        """Give the features around each frame of a segment, `(S, T, 5, L, C)`."""
        return torch.stack(
            [window_features(f, start=segment.start, stop=segment.stop) for f in self.features]
        )


@torch.no_grad()
def generate(
    transformer: MultiTalkModel,
    vae: VideoVAE,
    image_encoder: ImageEncoder,
    *,
    photo: Tensor | Callable[[int], Tensor],
    speech: Speech,
    masks: Tensor | None,
    text: Tensor,
    negative_text: Tensor | None,
    size: Size,
    config: SamplingConfig,
    generator: Generator,
    device: torch.device | str,
    dtype: torch.dtype,
    on_step: Callable[[Step], None] | None = None,
    segment_plan: SegmentPlan | None = None,
    solver: Solver = solve,
    attends: Attends = PLAIN,
) -> Iterator[Tensor]:
    """Generate a talking video, segment by segment.

    Args:
        transformer: Wan2.1 with MultiTalk's audio layers.
        vae: The video autoencoder; gets and gives tensors on any device.
        image_encoder: The CLIP vision tower; likewise.
        photo: `(H0, W0, 3)` uint8, or a function that gives such a picture for a frame number,
            which InfiniteTalk asks once a segment.
        speech: Who says what.
        masks: Where each speaker is in the photo, the background last, `(S + 1, H0, W0)`; `None`
            for a single speaker.
        text: Encoded prompt, `(1, L, text_dim)`; padded with zero rows by the model.
        negative_text: Encoded negative prompt; needed unless the text guidance is 1.
        size: Of the video, multiples of 16 pixels.
        config: How to sample.
        generator: Source of all noise; drawn from in upstream's order.
        device: Where to compute.
        dtype: Of the transformer's activations; the latents are float32.
        on_step: Called after every step; may raise to cancel.
        segment_plan: Another division into segments, for comparisons with upstream.
        solver: How noise becomes latents; upstream's Euler steps unless another is given.
        attends: Who computes the transformer's attention; torch unless others are given.

    Yields:
        After each segment the frames that are final, `(3, T, H, W)` float32 on the CPU in [-1, 1],
        in order; `speech.num_frames` in all. The motion frames come with the next segment, which
        they fade into.

    Raises:
        InputError: If the inputs do not fit each other.
        MultiTalkError: If a segment comes out as NaN.
    """
    _check(speech=speech, masks=masks, negative_text=negative_text, size=size, config=config)
    picture_at = photo if not isinstance(photo, Tensor) else lambda _: photo
    reference = prepare(picture_at(0), size=size).to(device)
    token_masks = _token_masks(masks, speech=speech, size=size)
    chosen = segment_plan or plan(
        speech.num_frames,
        segment_frames=config.segment_frames,
        motion_frames=config.motion_frames,
    )
    motion_frames = tail = None
    for index, segment in enumerate(chosen.segments):
        _log.debug("segment %d of %d: %s", index + 1, len(chosen.segments), segment)
        noise = draw_noise(_latent_shape(segment, size), generator).to(device)
        condition = condition_segment(
            segment,
            method=config.method,
            picture=_picture(picture_at, segment, reference, size=size, config=config),
            motion_frames=motion_frames,
            vae=vae,
            image_encoder=image_encoder,
        )
        model = SegmentModel(
            index=index,
            transformer=transformer,
            condition=condition,
            windows=speech.windows(segment).to(device, dtype),
            text=text.to(device, dtype),
            negative_text=None if negative_text is None else negative_text.to(device, dtype),
            token_masks=None if token_masks is None else token_masks.to(device),
            audio_strength=config.audio_strength,
            attends=attends,
        )
        latents = solver(
            noise,
            model,
            config=config,
            generator=generator,
            on_step=_reporter(on_step, index, len(chosen.segments)),
        )
        frames = vae.decode(latents).to(device, torch.float32)
        require_finite(frames, what=f"The decoded frames of segment {index + 1}")
        if config.color_match > 0:
            match_color_(frames, reference, strength=config.color_match)
        final, tail = join(
            frames[0], keep=segment.keep, tail=tail, num_held=chosen.held_frames(index)
        )
        yield final
        del final  # the caller's now, and large: not to be held while the next one is sampled
        motion_frames = frames[:, :, -config.motion_frames :]


def _check(
    *,
    speech: Speech,
    masks: Tensor | None,
    negative_text: Tensor | None,
    size: Size,
    config: SamplingConfig,
) -> None:
    if size.height % TOKEN_PIXELS or size.width % TOKEN_PIXELS:
        raise InputError(
            f"The size {size.width}x{size.height} is not a multiple of {TOKEN_PIXELS} pixels each "
            "way. Pass it through `snap_size` first."
        )
    if negative_text is None and needs_negative_text(config.text_guidance):
        raise InputError(
            f"A text guidance of {config.text_guidance} needs a negative prompt (it may be empty). "
            "Give one, or set the text guidance to 1."
        )
    num_masks = 0 if masks is None else masks.shape[0]
    if speech.num_speakers > 1 and num_masks != speech.num_speakers + 1:
        raise InputError(
            f"{speech.num_speakers} speakers need {speech.num_speakers + 1} masks (the background "
            f"last), but {num_masks} were given. Make them with `speaker_masks`."
        )


def _picture(
    picture_at: Callable[[int], Tensor],
    segment: Segment,
    reference: Tensor,
    *,
    size: Size,
    config: SamplingConfig,
) -> Tensor:
    """Give the picture at a segment's start; MultiTalk looks at the photo only once."""
    if segment.start == 0 or config.method == "multitalk":
        return reference
    return prepare(picture_at(segment.start), size=size).to(reference.device)


def _token_masks(masks: Tensor | None, *, speech: Speech, size: Size) -> Tensor | None:
    """Give the masks on the token grid; a single speaker is everywhere and needs none."""
    if masks is None or speech.num_speakers == 1:
        return None
    return to_tokens(fit_masks(masks, size=size))


def _latent_shape(segment: Segment, size: Size) -> tuple[int, ...]:
    height, width = size.height // PIXEL_STRIDE, size.width // PIXEL_STRIDE
    return (1, _LATENT_CHANNELS, latent_frames(segment.num_frames), height, width)


def _reporter(
    on_step: Callable[[Step], None] | None, segment: int, num_segments: int
) -> OnSolverStep:
    def report(step: int, num_steps: int, latents: Tensor) -> None:
        if on_step is not None:
            on_step(Step(segment, num_segments, step, num_steps, latents))

    return report
