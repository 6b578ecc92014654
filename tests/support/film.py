"""A small film for tests: a scene, a small transformer and stand-in encoders."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from comfyui_multitalk.multitalk_core.config import SamplingConfig
from comfyui_multitalk.multitalk_core.engine import Engine, Finished
from comfyui_multitalk.multitalk_core.geometry import Size
from comfyui_multitalk.multitalk_core.inputs import scene
from comfyui_multitalk.multitalk_core.inputs.masks import fit_masks, to_tokens
from comfyui_multitalk.multitalk_core.inputs.scene import Picture, Text
from comfyui_multitalk.multitalk_core.inputs.speech import Speech
from comfyui_multitalk.multitalk_core.method.sampler import EulerSampler
from comfyui_multitalk.multitalk_core.method.state import SegmentState
from comfyui_multitalk.tests.support.stand_ins import MeanImageEncoder, MeanVAE
from comfyui_multitalk.tests.support.transformer import AUDIO, CONFIG, small_model

SIZE = Size(32, 48)
SAMPLING = SamplingConfig(steps=2, segment_frames=9, motion_frames=5, color_match=0.0)


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def voices(count: int, *, num_frames: int = 14) -> tuple[Tensor, ...]:
    return tuple(draw(num_frames, AUDIO.layers, AUDIO.channels, seed=10 + i) for i in range(count))


def half_masks() -> Tensor:
    masks = torch.zeros(3, 40, 60, dtype=torch.bool)
    masks[0, :, :20] = True
    masks[1, :, 40:] = True
    masks[2, :, 20:40] = True
    return masks


@dataclass
class Film:
    """The arguments of a run, one voice and two segments unless changed."""

    speech: Speech = field(default_factory=lambda: Speech(features=voices(1), num_frames=12))
    masks: Tensor | None = None
    config: SamplingConfig = SAMPLING
    photo: Any = field(
        default_factory=lambda: (draw(40, 60, 3, seed=5) * 50 + 128).clamp(0, 255).to(torch.uint8)
    )
    text: Tensor = field(default_factory=lambda: draw(1, 4, CONFIG.text_dim, seed=6))
    negative_text: Tensor | None = field(
        default_factory=lambda: draw(1, 6, CONFIG.text_dim, seed=7)
    )
    size: Size = SIZE
    on_step: Any = None
    seed: int = 42
    dtype: torch.dtype = torch.float32
    model: Any = field(default_factory=small_model)
    vae: MeanVAE = field(default_factory=MeanVAE)
    image_encoder: MeanImageEncoder = field(
        default_factory=lambda: MeanImageEncoder(CONFIG.image_dim)
    )

    def engine(self) -> Engine:
        return Engine(
            sampler=EulerSampler(self.model, dtype=self.dtype),
            vae=self.vae,
            image_encoder=self.image_encoder,
            device="cpu",
        )

    def scene(self) -> scene.Scene:
        photo_at = self.photo if callable(self.photo) else lambda _: self.photo
        masks = None if self.masks is None else to_tokens(fit_masks(self.masks, size=self.size))
        text = Text(self.text, self.negative_text)
        return scene.Scene(
            picture=Picture(photo_at, masks, self.size), speech=self.speech, text_at=lambda _: text
        )

    def segments(self, state: SegmentState | None = None) -> Iterator[Finished]:
        return self.engine().segments(
            self.scene(), self.config, seed=self.seed, state=state, on_step=self.on_step
        )

    def start(self) -> Iterator[Tensor]:
        return (part.frames for part in self.segments())

    def video(self) -> Tensor:
        return torch.cat(list(self.start()), dim=1)


def two_speakers(**changes: Any) -> Film:
    film = Film(speech=Speech(features=voices(2), num_frames=12), masks=half_masks())
    return replace(film, **changes)
