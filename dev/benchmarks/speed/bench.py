"""What all tables of a run share: sizes, device, time limit, inputs and the device's rates."""

from __future__ import annotations

import contextlib
import gc
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from ....multitalk_core.config import AUDIO_WINDOW, AudioConfig
from ....multitalk_core.model.attention import IMAGE_TOKENS, Attends
from ....multitalk_core.model.audio_tokens import AudioContext
from ....multitalk_core.model.backends import Backend, video_attention
from ....multitalk_core.model.dit import MultiTalkModel
from ....multitalk_core.model.hooks import Hooks
from .flops import Flops, Rates, forward_flops
from .scales import Scale

_WARM_BLOCKS = 2


@dataclass
class Bench:
    """One run.

    Attributes:
        scale: Sizes of model and video.
        device: Device that computes.
        dtype: Type the model computes in.
        seconds: Time limit of one table. Rows left out after it are named below the table.
        repeats: Timed calls of a forward.
        rates: Rates of the device, once `floor.device_rates` has measured them.
        began: When the current table began.
    """

    scale: Scale
    device: torch.device
    dtype: torch.dtype
    seconds: float
    repeats: int = 3
    rates: Rates | None = None
    began: float = field(default_factory=time.perf_counter)

    def begin(self) -> None:
        """Start the clock of a table, after freeing the memory of the table before."""
        release(self.device)
        self.began = time.perf_counter()

    def late(self) -> bool:
        """Tell whether the table has used up its time."""
        return time.perf_counter() - self.began > self.seconds

    def flops(self, *, num_speakers: int) -> Flops:
        """Count the operations of one forward."""
        return forward_flops(self.scale.config, self.scale.grid, num_speakers=num_speakers)

    @property
    def audio(self) -> AudioConfig:
        """Sizes of the audio branch; every scale has one."""
        assert self.scale.config.audio is not None
        return self.scale.config.audio

    @property
    def attention(self) -> Backend:
        """Attention backend of the video tokens: the command's automatic choice."""
        return video_attention("auto", device=self.device, dtype=self.dtype)

    @property
    def attends(self) -> Attends:
        """Attention backends of a forward."""
        return Attends(video=self.attention.attend)

    def generator(self, seed: int = 0) -> torch.Generator:
        """Make a source of random numbers on the device."""
        return torch.Generator(self.device).manual_seed(seed)

    def normal(self, *shape: int, seed: int = 0) -> Tensor:
        """Draw normal numbers on the device, rounded to bfloat16 so that any dtype holds them."""
        drawn = torch.empty(shape, device=self.device).normal_(generator=self.generator(seed))
        return drawn.to(torch.bfloat16).to(self.dtype)

    def windows(self, num_speakers: int) -> Tensor:
        """Draw the audio features around each video frame."""
        audio = self.audio
        size = (num_speakers, self.scale.num_frames, AUDIO_WINDOW, audio.layers, audio.channels)
        return self.normal(*size, seed=10)

    def token_masks(self, num_speakers: int) -> Tensor | None:
        """Give a third of the picture's width to each of two speakers and the background."""
        if num_speakers == 1:
            return None
        _, height, width = self.scale.grid
        masks = torch.zeros(3, height, width, device=self.device)
        third = width // 3
        masks[0, :, :third], masks[1, :, -third:] = 1, 1
        masks[2] = 1 - masks[0] - masks[1]
        return masks.flatten(1)

    def image(self) -> Tensor:
        """Draw the CLIP tokens of the photo."""
        return self.normal(1, IMAGE_TOKENS, self.scale.config.image_dim, seed=4)

    def inputs(self, model: MultiTalkModel, *, num_speakers: int) -> dict[str, Any]:
        """Draw the inputs of one forward."""
        config = self.scale.config
        return {
            "latents": self.normal(1, 16, *self.scale.latent, seed=1),
            "timestep": torch.tensor([700.0], device=self.device),
            "condition": self.normal(1, 20, *self.scale.latent, seed=2),
            "text": self.normal(1, config.text_len, config.text_dim, seed=3),
            "image": self.image(),
            "audio": AudioContext(
                model.project_audio(self.windows(num_speakers)), self.token_masks(num_speakers)
            ),
            "hooks": Hooks(attends=self.attends),
        }


@contextlib.contextmanager
def shortened(model: MultiTalkModel) -> Iterator[None]:
    """Keep only the first blocks of a model: enough to warm up all kernels, at less cost."""
    blocks = model.blocks
    model.blocks = nn.ModuleList(list(blocks)[:_WARM_BLOCKS])
    try:
        yield
    finally:
        model.blocks = blocks


def release(device: torch.device) -> None:
    """Free the memory of tensors that are no longer used."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()


def log(message: str) -> None:
    """Write to stderr what is being measured."""
    sys.stderr.write(f"speed: {message}\n")
    sys.stderr.flush()
