"""MultiTalk Sampler: photo, voices and prompt to frames, sound and video."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from fractions import Fraction
from typing import Any, Literal, get_args

import torch
from comfy_api.latest import InputImpl, Types, io, ui
from torch import Tensor

from ..multitalk_core.config import FPS, ApgConfig, Method, SamplingConfig
from ..multitalk_core.engine import Finished
from ..multitalk_core.errors import InputError
from ..multitalk_core.geometry import MAX_SIDE, Size, video_size
from ..multitalk_core.inputs.photo import to_photo
from ..multitalk_core.inputs.scene import Scene, Text, compose
from .host.sampling import EULER, SAMPLERS, SCHEDULERS, UPSTREAM, HostSampler
from .host.session import Session, check_features
from .settings import fast_inputs, guidance_inputs, schedule_inputs
from .sockets import AudioEmbeds, SpokenAudio

SizeChoice = Literal["480p", "720p", "longest side"]
_UPSTREAM = SamplingConfig()

_log = logging.getLogger(__name__)


class MultiTalkSampler(io.ComfyNode):
    """MultiTalk Sampler."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="MTK_Sampler",
            display_name="MultiTalk Sampler",
            category="MultiTalk",
            description=(
                "Makes a video in which the people in the photo speak with the given voices. The "
                "video has 25 frames a second, is as long as the sound, and is sampled segment by "
                "segment. The defaults are MultiTalk's own for 480p. With a distilled LoRA "
                "(lightx2v, FusionX) use 4 to 8 steps, shift 2, text guidance 1 and audio "
                "guidance 2."
            ),
            search_aliases=["multitalk", "infinitetalk", "talking head", "lip sync"],
            inputs=[
                *_sockets(),
                *_look(),
                *_method(),
                *schedule_inputs(),
                *guidance_inputs(),
                *_steps(),
                *fast_inputs(),
            ],
            outputs=[
                io.Image.Output(
                    display_name="frames", tooltip="The frames of the video, 25 a second."
                ),
                io.Audio.Output(
                    display_name="audio", tooltip="The sound of the video, as long as the frames."
                ),
                io.Video.Output(
                    display_name="video", tooltip="Frames and sound as one video, for Save Video."
                ),
            ],
        )

    @classmethod
    def execute(
        cls,
        model: Any,
        audio_embeds: SpokenAudio,
        image: Tensor,
        positive: list[Any],
        vae: Any,
        clip_vision: Any,
        seed: int,
        size: SizeChoice,
        longest_side: int,
        apg: bool,
        negative: list[Any] | None = None,
        sampler_name: str = EULER,
        scheduler: str = UPSTREAM,
        **settings: Any,
    ) -> io.NodeOutput:
        config = SamplingConfig(**settings, apg=ApgConfig() if apg else None)
        session = Session(model, vae=vae, clip_vision=clip_vision)
        check_features(session.transformer, audio_embeds.speech, encoder=audio_embeds.encoder)
        photo = to_photo(image)
        shape = Size(*photo.shape[:2])
        frame_size = video_size(shape, wanted=longest_side if size == "longest side" else size)
        speech = audio_embeds.speech
        text_len = session.transformer.config.text_len
        text = Text(
            _tokens(positive, "positive", limit=text_len),
            None if negative is None else _tokens(negative, "negative", limit=text_len),
        )
        scene = Scene(
            picture=compose(photo, audio_embeds.regions, size=frame_size),
            speech=speech,
            text_at=lambda _: text,
        )
        sampler = HostSampler(
            model,
            positive=positive[0][1],
            negative={} if negative is None else negative[0][1],
            sampler_name=sampler_name,
            scheduler=scheduler,
            seed=seed,
        )
        segments = session.engine(sampler).segments(
            scene, config, seed=seed, on_step=session.reporter()
        )
        frames = _collect(segments, num_frames=speech.num_frames, size=frame_size)
        return _outputs(frames, audio_embeds)


def _sockets() -> list[io.Input]:
    return [
        io.Model.Input(
            "model", tooltip="The model with audio layers, from Load MultiTalk Adapter."
        ),
        AudioEmbeds.Input(
            "audio_embeds", tooltip="The audio features, from MultiTalk Audio Embeds."
        ),
        io.Image.Input("image", tooltip="The photo. Of a batch only the first is used."),
        io.Conditioning.Input("positive", tooltip="The prompt, from CLIP Text Encode."),
        io.Conditioning.Input(
            "negative",
            optional=True,
            tooltip=(
                "The negative prompt, from CLIP Text Encode. It is required unless text_guidance "
                "is 1."
            ),
        ),
        io.Vae.Input("vae", tooltip="The video autoencoder wan_2.1_vae, from Load VAE."),
        io.ClipVision.Input(
            "clip_vision",
            tooltip=(
                "The image encoder, from Load CLIP Vision (Wan2.1). The sampler encodes one "
                "picture with it for each segment."
            ),
        ),
    ]


def _look() -> list[io.Input]:
    return [
        io.Int.Input(
            "seed",
            default=0,
            min=0,
            max=2**64 - 1,
            control_after_generate=True,
            tooltip="Seed of the noise. The same seed and settings give the same video.",
        ),
        io.Combo.Input(
            "size",
            options=list(get_args(SizeChoice)),
            default="480p",
            tooltip=(
                "480p, 720p: the size in MultiTalk's table whose aspect ratio is nearest to the "
                "photo's; it has about as many pixels as 640x640 or 960x960. longest side: the "
                "photo's own aspect ratio, in multiples of 16 pixels."
            ),
        ),
        io.Int.Input(
            "longest_side",
            default=832,
            min=16,
            max=MAX_SIDE,
            step=16,
            tooltip="Length of the longer side in pixels. Only used if size is 'longest side'.",
        ),
    ]


def _method() -> list[io.Input]:
    return [
        io.Combo.Input(
            "method",
            options=list(get_args(Method)),
            default=_UPSTREAM.method,
            tooltip=(
                "The method that the weights were trained for. It cannot be detected from the "
                "file. With infinitetalk set motion_frames to 9. With flashtalk set steps to 4, "
                "shift to 5, both guidances to 1, segment_frames to 33 and motion_frames to 5."
            ),
        ),
        io.Int.Input(
            "segment_frames",
            default=_UPSTREAM.segment_frames,
            min=5,
            max=1001,
            step=4,
            tooltip=(
                "Frames in each segment, a multiple of 4 plus 1. 81 frames are 3.24 seconds. "
                "Longer segments need more memory."
            ),
        ),
        io.Int.Input(
            "motion_frames",
            default=_UPSTREAM.motion_frames,
            min=1,
            max=997,
            step=4,
            tooltip=(
                "Last frames of a segment with which the next segment begins, a multiple of 4 "
                "plus 1: 25 for MultiTalk, 9 for InfiniteTalk, 5 for FlashTalk."
            ),
        ),
        io.Float.Input(
            "color_match",
            default=_UPSTREAM.color_match,
            min=0.0,
            max=1.0,
            step=0.05,
            tooltip=(
                "How strongly the colours of each frame are matched to the photo's, from 0 (off) "
                "to 1. This prevents colour drift in long videos."
            ),
        ),
    ]


def _steps() -> list[io.Input]:
    return [
        io.Combo.Input(
            "sampler_name",
            options=list(SAMPLERS),
            default=EULER,
            optional=True,
            tooltip=(
                "The sampler: euler, the steps of the method's own code, or another one of "
                "ComfyUI. With a distilled LoRA use euler or lcm."
            ),
        ),
        io.Combo.Input(
            "scheduler",
            options=list(SCHEDULERS),
            default=UPSTREAM,
            optional=True,
            tooltip=(
                "The noise schedule: multitalk, that of the method's own code, or one of ComfyUI. "
                "All schedules except linear_quadratic depend on shift."
            ),
        ),
    ]


def _tokens(conditioning: list[Any], name: str, *, limit: int) -> Tensor:
    """Return the tokens `(1, L, D)` of a CONDITIONING, at most as many as the model reads."""
    if len(conditioning) != 1:
        raise InputError(
            f"The {name} conditioning has {len(conditioning)} prompts; one is needed. "
            "Connect CLIP Text Encode directly."
        )
    tokens: Tensor = conditioning[0][0]
    if tokens.shape[1] > limit:
        _log.warning(
            "The %s prompt has %d tokens; the model reads %d; the others have no effect.",
            name,
            tokens.shape[1],
            limit,
        )
    return tokens[:1, :limit].float()


def _collect(segments: Iterable[Finished], *, num_frames: int, size: Size) -> Tensor:
    """Join the frames of segments, in [-1, 1], to ComfyUI's IMAGE, `(T, H, W, 3)` in 0 to 1."""
    video = torch.empty(num_frames, *size, 3)
    done = 0
    for segment in segments:
        count = segment.frames.shape[1]
        frames = video[done : done + count]
        frames.copy_(segment.frames.movedim(0, -1)).add_(1).div_(2).clamp_(0, 1)
        done += count
    return video


def _outputs(frames: Tensor, spoken: SpokenAudio) -> io.NodeOutput:
    audio = {"waveform": spoken.sound.waveform, "sample_rate": spoken.sound.sample_rate}
    video = InputImpl.VideoFromComponents(
        Types.VideoComponents(images=frames, audio=audio, frame_rate=Fraction(FPS))
    )
    num_frames, height, width, _ = frames.shape
    summary = f"{width} x {height} pixels, {num_frames} frames = {num_frames / FPS:.2f} s"
    return io.NodeOutput(frames, audio, video, ui=ui.PreviewText(summary))
