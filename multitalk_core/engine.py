"""The method from photo and speech to video, as one recipe: `Engine.segments`.

Plan the segments; for each one: draw noise, condition on the picture, sample, decode, match the
colours, crossfade into the video, and hand over a `SegmentState`. Follows MultiTalk
`wan/multitalk.py:generate` (paper arXiv:2505.22647), InfiniteTalk's `generate_infinitetalk` and
SoulX-FlashTalk's `FlashTalkPipeline`.
Departures: the video is as long as the sound (`segments.py`), and segments crossfade (`seams.py`).

An engine is built once from loaded parts and makes any number of videos. It owns no files, devices
or processes; only tensors move here.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from .config import SamplingConfig
from .errors import InputError
from .geometry import PIXEL_STRIDE, Size, latent_frames
from .inputs.photo import prepare
from .inputs.scene import Scene
from .method.color import match_color_
from .method.conditioning import condition_segment, draw_noise
from .method.guidance import needs_negative_text
from .method.sampler import OnSamplerStep, SegmentInputs, SegmentSampler, require_finite
from .method.seams import join
from .method.segments import Segment, SegmentPlan, plan
from .method.state import SegmentState, Settings, settings_of
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


class Finished(NamedTuple):
    """Output of one segment.

    Attributes:
        frames: Frames that no later segment changes, `(3, T, H, W)` float32 on the CPU in [-1, 1].
        state: Start of the next segment; `None` after the last one.
    """

    frames: Tensor
    state: SegmentState | None


class Engine:
    """The loaded parts that make videos; frames are computed on `device`."""

    def __init__(
        self,
        *,
        sampler: SegmentSampler,
        vae: VideoVAE,
        image_encoder: ImageEncoder,
        device: torch.device | str,
    ) -> None:
        self._sampler = sampler
        self._vae = vae
        self._image_encoder = image_encoder
        self._device = torch.device(device)

    def plan(self, scene: Scene, config: SamplingConfig) -> SegmentPlan:
        """Divide the video into segments."""
        return plan(
            scene.speech.num_frames,
            segment_frames=config.segment_frames,
            motion_frames=config.motion_frames,
        )

    @torch.no_grad()
    def segments(
        self,
        scene: Scene,
        config: SamplingConfig,
        *,
        seed: int,
        state: SegmentState | None = None,
        on_step: Callable[[Step], None] | None = None,
    ) -> Iterator[Finished]:
        """Make a talking video, segment by segment.

        Args:
            scene: What is to be seen and heard.
            config: How to sample.
            seed: Of all noise, which is drawn on the CPU in upstream's order.
            state: Where to go on, if some segments are done.
            on_step: Called after every step; may raise to cancel.

        Yields:
            After each segment the frames that are final, in order, `scene.speech.num_frames` in
            all. The motion frames come with the next segment, which they crossfade into.

        Raises:
            InputError: If the inputs do not fit each other, or `state` is of another video.
            MultiTalkError: If a segment comes out as NaN.
        """
        photo = scene.picture.photo_at(0)
        settings = _settings(scene, photo, config, seed)
        generator = torch.Generator().manual_seed(seed)
        num_done, motion_frames, tail = 0, None, None
        if state is not None:
            state.require(settings)
            generator.set_state(state.generator)
            num_done, tail = state.num_done, state.tail
            motion_frames = state.motion_frames.to(self._device)
        reference = self._prepare(photo, size=scene.picture.size)
        chosen = self.plan(scene, config)
        for index, segment in enumerate(chosen.segments[num_done:], start=num_done):
            _log.debug("segment %d of %d: %s", index + 1, len(chosen.segments), segment)
            noise = draw_noise(_latent_shape(segment, scene.picture.size), generator)
            picture = reference
            if segment.start > 0 and config.method == "infinitetalk":  # the others read it once
                picture = self._prepare(
                    scene.picture.photo_at(segment.start), size=scene.picture.size
                )
            condition = condition_segment(
                segment,
                method=config.method,
                picture=picture,
                motion_frames=motion_frames,
                vae=self._vae,
                image_encoder=self._image_encoder,
            )
            latents = self._sampler.sample(
                noise.to(self._device),
                SegmentInputs(
                    index=index,
                    condition=condition,
                    windows=scene.speech.windows(segment),
                    text=scene.text_at(index),
                    token_masks=scene.picture.token_masks,
                    config=config,
                    generator=generator,
                    on_step=_reporter(on_step, index, len(chosen.segments)),
                ),
            )
            frames = self._decode(latents, index, reference=reference, config=config)
            joined = join(
                frames[0], keep=segment.keep, tail=tail, num_pending=chosen.pending_frames(index)
            )
            tail = joined.tail
            motion_frames = frames[:, :, -config.motion_frames :]
            after = SegmentState(
                num_done=index + 1,
                motion_frames=motion_frames.cpu(),
                tail=tail,
                generator=generator.get_state(),
                settings=settings,
            )
            last = index + 1 == len(chosen.segments)
            yield Finished(joined.final, None if last else after)
            del joined  # the caller's now, and large: do not keep it while the next one is sampled

    def _prepare(self, photo: Tensor, *, size: Size) -> Tensor:
        """Give a picture at the video's size, `(1, 3, 1, H, W)` in [-1, 1]."""
        return prepare(photo, size=size).to(self._device)

    def _decode(
        self, latents: Tensor, index: int, *, reference: Tensor, config: SamplingConfig
    ) -> Tensor:
        """Give the frames of a segment, `(1, 3, T, H, W)`, in the photo's colours."""
        frames = self._vae.decode(latents).to(self._device, torch.float32)
        require_finite(frames, what=f"The decoded frames of segment {index + 1}")
        if config.color_match > 0:
            match_color_(frames, reference, strength=config.color_match)
        return frames


def _settings(scene: Scene, photo: Tensor, config: SamplingConfig, seed: int) -> Settings:
    """Check the scene against the settings; give all that the frames depend on, by name."""
    config.check_speakers(len(scene.speech.features))
    if scene.text_at(0).negative is None and needs_negative_text(config.text_guidance):
        raise InputError(
            f"A text guidance of {config.text_guidance} needs a negative prompt (it may be empty). "
            "Give one, or set the text guidance to 1."
        )
    height, width = scene.picture.size
    return {
        **settings_of(config),
        **scene.digests(photo),
        "seed": seed,
        "size": f"{width}x{height}",
        "number of frames": scene.speech.num_frames,
    }


def _latent_shape(segment: Segment, size: Size) -> tuple[int, ...]:
    height, width = size.height // PIXEL_STRIDE, size.width // PIXEL_STRIDE
    return (1, _LATENT_CHANNELS, latent_frames(segment.num_frames), height, width)


def _reporter(
    on_step: Callable[[Step], None] | None, segment: int, num_segments: int
) -> OnSamplerStep:
    def report(step: int, num_steps: int, latents: Tensor) -> None:
        if on_step is not None:
            on_step(Step(segment, num_segments, step, num_steps, latents))

    return report
