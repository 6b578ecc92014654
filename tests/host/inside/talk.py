"""The tiny models with a photo, prompts and voices, to sample a talking video in every way."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import comfy.sd
import comfy.utils
import torch
from comfy_extras.nodes_custom_sampler import KSamplerSelect, RandomNoise, SamplerCustomAdvanced
from comfy_extras.nodes_wan import WanImageToVideo
from torch import Tensor

from comfyui_multitalk.multitalk_core.config import SamplingConfig
from comfyui_multitalk.multitalk_core.engine import Step
from comfyui_multitalk.multitalk_core.geometry import Size
from comfyui_multitalk.multitalk_core.inputs.scene import Scene, Text, compose
from comfyui_multitalk.multitalk_core.inputs.speech import Speech
from comfyui_multitalk.multitalk_core.inputs.timeline import Sound, Timeline
from comfyui_multitalk.multitalk_core.method.conditioning import Condition, Motion
from comfyui_multitalk.multitalk_core.method.sampler import (
    EulerSampler,
    SegmentInputs,
    SegmentSampler,
)
from comfyui_multitalk.multitalk_core.model.dit import MultiTalkModel
from comfyui_multitalk.nodes.guider import MultiTalkGuider
from comfyui_multitalk.nodes.host import model, sampling, text, vision
from comfyui_multitalk.nodes.host.session import Session
from comfyui_multitalk.nodes.sigmas import MultiTalkSigmas
from comfyui_multitalk.nodes.sockets import SpokenAudio
from comfyui_multitalk.tests.host.inside.scene import ADAPTER, BASE, TINY

SIZE = Size(32, 48)
SEED = 5
CONFIG = SamplingConfig(steps=2, segment_frames=9, motion_frames=5, color_match=0.0)
FAST = (
    *("text_guidance_start", "text_guidance_end", "audio_guidance_start", "audio_guidance_end"),
    "step_cache",
)
"""Settings of the fast modes."""


SPREAD = 0.5
"""Standard deviation of the clean latents of `mean_of_normal`."""


def mean_of_normal(x: Tensor, level: Any) -> Tensor:
    """Give the mean of what clean latents, normal around 0, may have been at a noise level."""
    rest = 1 - level
    return rest * SPREAD**2 * x / (rest**2 * SPREAD**2 + level**2)


def draw(*shape: int, seed: int = 0) -> Tensor:
    """Draw normal numbers."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


class Core:
    """The transformer as core calls it, without ComfyUI's calling convention.

    Attributes:
        called: The timestep of each call.
    """

    def __init__(self, net: MultiTalkModel) -> None:
        self._net = net
        self.project_audio = net.project_audio
        self.called: list[float] = []

    def __call__(self, latents: Tensor, timestep: Tensor, **named: Any) -> Tensor:
        """Predict the velocity."""
        self.called.append(float(timestep[0]))
        return MultiTalkModel.forward(self._net, latents, timestep, **named)


class Talk:
    """The models, a photo of the size of the video, two prompts and up to two voices."""

    def __init__(self) -> None:
        self.base = model.load_base(BASE)
        self.model = model.load_adapter(self.base, ADAPTER)
        clip = text.load_text_encoder(TINY.text_encoder)
        self.clip_vision = vision.load_clip_vision(TINY.clip_vision)
        self.vae = comfy.sd.VAE(comfy.utils.load_torch_file(str(TINY.vae)))
        pixels = draw(1, *SIZE, 3, seed=1).mul(40).add(128).clamp(0, 255).round()
        self.photo = pixels / 255
        self.prompts = [
            clip.encode_from_tokens_scheduled(clip.tokenize(words))
            for words in ("a person talks", "blurred")
        ]
        self.session = Session(self.model, vae=self.vae, clip_vision=self.clip_vision)

    def spoken(self, num_speakers: int, *, num_frames: int = 9) -> SpokenAudio:
        """Give voices as MultiTalk Audio Embeds does, with drawn features."""
        audio = self.session.transformer.config.audio
        assert audio is not None
        features = [
            draw(num_frames + 20, audio.layers, audio.channels, seed=10 + i)
            for i in range(num_speakers)
        ]
        return SpokenAudio(
            speech=Speech(features=tuple(features), num_frames=num_frames),
            regions=(None,) * num_speakers,
            timeline=Timeline((), num_frames, (), ()),
            sound=Sound(torch.zeros(1, 1, 640), 16000),
            encoder="none",
        )

    @property
    def text(self) -> Text:
        """Both prompts."""
        return Text(*(conditioning[0][0] for conditioning in self.prompts))

    def segments(
        self,
        spoken: SpokenAudio,
        config: SamplingConfig,
        sampler: SegmentSampler,
        *,
        on_step: Callable[[Step], None] | None = None,
    ) -> list[Tensor]:
        """Make a video with the engine; give the latents of each segment."""
        seen = []

        class Recorded:
            def sample(self, noise: Tensor, inputs: SegmentInputs) -> Tensor:
                seen.append(sampler.sample(noise, inputs))
                return seen[-1]

        photo = (self.photo[0] * 255).to(torch.uint8)
        scene = Scene(
            picture=compose(photo, spoken.regions, size=SIZE),
            speech=spoken.speech,
            text_at=lambda _: self.text,
        )
        engine = self.session.engine(Recorded())
        list(engine.segments(scene, config, seed=SEED, on_step=on_step))
        return seen

    def core(self, net: Core | None = None) -> EulerSampler:
        """Give the core's own sampler; `net` notes its calls."""
        return EulerSampler(net or Core(self.session.transformer), dtype=torch.float32)

    def sampler(
        self, name: str = "euler", *, patched: Any = None, **changes: Any
    ) -> sampling.HostSampler:
        """Give the sampler of the MultiTalk Sampler node."""
        settings = {
            "positive": {},
            "negative": {},
            "scheduler": "multitalk",
            "seed": SEED,
            **changes,
        }
        return sampling.HostSampler(patched or self.model, sampler_name=name, **settings)

    def sample_segment(
        self,
        call: Callable[[Any, dict[str, Any]], Tensor],
        name: str,
        motion: Motion,
        *,
        noise: Tensor,
        start: int = 0,
        index: int = 1,
        config: SamplingConfig,
        on_step: Callable[[int, int, Any], None] = lambda *_: None,
    ) -> Tensor:
        """Sample one segment by the MultiTalk Sampler, with a function in place of the network."""
        patched = self.model.clone()
        patched.set_model_unet_function_wrapper(call)
        frames = 4 * noise.shape[2] - 3
        channels = draw(1, 20, *noise.shape[2:])
        return self.sampler(name, patched=patched).sample(
            noise,
            SegmentInputs(
                index=index,
                condition=Condition(channels[:, 4:], channels[:, :4], draw(1, 257, 64), motion),
                windows=self.spoken(1).speech.windows(
                    SimpleNamespace(start=start, stop=start + frames)
                ),
                text=self.text,
                token_masks=None,
                config=config,
                generator=torch.Generator().manual_seed(SEED),
                on_step=on_step,
            ),
        )

    def conditioning(self, *, frames: int = 9) -> tuple[Any, Any, Any]:
        """Give what WanImageToVideo makes of the photo, which CLIP sees uncropped."""
        seen = self.clip_vision.encode_image(self.photo)
        seen["penultimate_hidden_states"] = vision.encode_picture(
            self.clip_vision, self.photo.movedim(-1, 1) * 2 - 1
        )
        made: tuple[Any, Any, Any] = WanImageToVideo.execute(
            *self.prompts,
            self.vae,
            SIZE.width,
            SIZE.height,
            frames,
            1,
            start_image=self.photo,
            clip_vision_output=seen,
        ).args
        return made

    def guided(
        self,
        spoken: SpokenAudio,
        config: SamplingConfig,
        *,
        sampler: str = "euler",
        patched: Any = None,
        start_frame: int = 0,
    ) -> Tensor:
        """Sample one segment with ComfyUI's own nodes around our guider; normalised latents."""
        positive, negative, latent = self.conditioning()
        guider = self.guider(
            spoken, config, positive, negative, patched=patched, start_frame=start_frame
        )
        (sigmas,) = MultiTalkSigmas.execute(config.steps, config.shift).args
        (noise,) = RandomNoise.execute(SEED).args
        (chosen,) = KSamplerSelect.execute(sampler).args
        out, _ = SamplerCustomAdvanced.execute(noise, guider, chosen, sigmas, latent).args
        samples: Tensor = self.model.model.process_latent_in(out["samples"])
        return samples

    def guider(
        self,
        spoken: SpokenAudio,
        config: SamplingConfig,
        positive: Any,
        negative: Any,
        *,
        patched: Any = None,
        start_frame: int = 0,
        image: Any = "photo",
    ) -> Any:
        """Give MultiTalk Guider's output."""
        return MultiTalkGuider.execute(
            model=patched or self.model,
            positive=positive,
            negative=negative,
            audio_embeds=spoken,
            start_frame=start_frame,
            image=self.photo if image == "photo" else image,
            text_guidance=config.text_guidance,
            audio_guidance=config.audio_guidance,
            audio_strength=config.audio_strength,
            apg=config.apg is not None,
            **{name: getattr(config, name) for name in FAST},
        ).args[0]
