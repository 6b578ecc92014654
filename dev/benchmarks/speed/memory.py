"""Memory of the device: a step with resident blocks, one with streamed blocks, long videos."""

from __future__ import annotations

import torch
import torch.nn.functional as functional
from torch import Generator, Tensor

from ....multitalk_core.config import SamplingConfig
from ....multitalk_core.engine import Engine
from ....multitalk_core.geometry import Size
from ....multitalk_core.inputs.scene import Scene, Text, compose
from ....multitalk_core.inputs.speech import Speech
from ....multitalk_core.method.sampler import EulerSampler
from ....multitalk_core.model.attention import IMAGE_TOKENS
from ....multitalk_core.model.dit import MultiTalkModel
from .bench import Bench, log
from .measure import allocated, now, peak, start_peak
from .report import Column, Table
from .sampling import sample, stream
from .weights import random_model

TITLE = "memory of the device, Q4_K base and Q8_0 adapter, two speakers"
COLUMNS = (
    Column("what", "what"),
    Column("blocks", "blocks", 0),
    Column("seconds", "s"),
    Column("ratio", "times the row above"),
    Column("peak", "peak, GB", 3, 1e-9),
    Column("weights", "allocated before, GB", 3, 1e-9),
    Column("after", "allocated after, GB", 3, 1e-9),
)
_STEPS = 2
_SHORT, _LONG = 2, 10
_MOTION = 5


def measure(bench: Bench, table: Table) -> None:
    """Sample with resident blocks, then with streamed ones."""
    model = random_model(bench.scale.config, base="Q4_K", adapter="Q8_0", device=bench.device)
    sample(bench, model, passes=1, steps=1, num_speakers=2)
    resident = _step(bench, table, model, "step of 3 passes, resident", before=None)
    if bench.late():
        table.notes.append("The time limit left out long videos and streamed blocks.")
        return
    _segments(bench, table, model)
    log("memory: streamed")
    stream(bench, model)
    _step(bench, table, model, "step of 3 passes, streamed blocks", before=resident)


def _step(
    bench: Bench, table: Table, model: MultiTalkModel, what: str, *, before: float | None
) -> float:
    log(f"memory: {what}")
    weights = start_peak(bench.device)
    seconds = sample(bench, model, passes=3, steps=_STEPS, num_speakers=2).step
    table.add(
        what=what,
        blocks=bench.scale.config.num_layers,
        seconds=seconds,
        ratio=None if before is None else seconds.median / before,
        peak=peak(bench.device),
        weights=weights,
        after=allocated(bench.device),
    )
    return seconds.median


def _segments(bench: Bench, table: Table, model: MultiTalkModel) -> None:
    """Make a short and a long video of one step a segment: memory must not grow with segments."""
    before: float | None = None
    make_video(bench, model, segments=1)
    for segments in (_SHORT, _LONG):
        log(f"memory: {segments} segments")
        weights, began = start_peak(bench.device), now(bench.device)
        make_video(bench, model, segments=segments)
        seconds = (now(bench.device) - began) / segments
        table.add(
            what=f"{segments} segments of one pass, time of one",
            blocks=bench.scale.config.num_layers,
            seconds=seconds,
            ratio=None if before is None else seconds / before,
            peak=peak(bench.device),
            weights=weights,
            after=allocated(bench.device),
        )
        before = seconds


def make_video(bench: Bench, model: MultiTalkModel, *, segments: int) -> None:
    """Make a whole video with an autoencoder of averages; drop its frames."""
    config, audio, frames_each = bench.scale.config, bench.audio, bench.scale.num_frames
    _, height, width = (8 * side for side in bench.scale.latent)
    num_frames = frames_each + (segments - 1) * (frames_each - _MOTION)
    generator = Generator().manual_seed(0)
    features = torch.randn(2, num_frames, audio.layers, audio.channels, generator=generator)
    photo = torch.randint(0, 256, (height, width, 3), dtype=torch.uint8, generator=generator)
    text = Text(torch.randn(1, config.text_len, config.text_dim, generator=generator), None)
    engine = Engine(
        sampler=EulerSampler(model, dtype=bench.dtype, attends=bench.attends),
        vae=AverageVAE(bench.device),
        image_encoder=PlainImageEncoder(config.image_dim, bench.device),
        device=bench.device,
    )
    parts = engine.segments(
        Scene(
            picture=compose(photo, [None, None], size=Size(height, width)),
            speech=Speech(features=tuple(features), num_frames=num_frames),
            text_at=lambda _: text,
        ),
        SamplingConfig(
            steps=1,
            text_guidance=1,
            audio_guidance=1,
            segment_frames=frames_each,
            motion_frames=_MOTION,
        ),
        seed=0,
    )
    count = sum(part.frames.shape[1] for part in parts)
    if count != num_frames:
        raise ArithmeticError(f"{count} frames came instead of {num_frames}")


class AverageVAE:
    """A `VideoVAE` without weights: a latent is the mean of its pixels."""

    def __init__(self, device: torch.device) -> None:
        self._device = device

    def encode(self, video: Tensor) -> Tensor:
        """Turn `(1, 3, T, H, W)` into `(1, 16, F, H/8, W/8)`."""
        small = functional.avg_pool3d(video[:, :, ::4].to(self._device), (1, 8, 8))
        return small.mean(dim=1, keepdim=True).repeat(1, 16, 1, 1, 1)

    def decode(self, latents: Tensor) -> Tensor:
        """Turn `(1, 16, F, h, w)` into `(1, 3, 4F - 3, 8h, 8w)`."""
        frames = latents[:, :3].tanh().repeat_interleave(4, dim=2)[:, :, 3:]
        return frames.repeat_interleave(8, dim=3).repeat_interleave(8, dim=4)


class PlainImageEncoder:
    """An image tower without weights."""

    def __init__(self, width: int, device: torch.device) -> None:
        self._tokens = torch.linspace(0, 6, IMAGE_TOKENS * width, device=device).sin()
        self._width = width

    def encode(self, image: Tensor) -> Tensor:
        """Turn `(1, 3, H, W)` into `(1, 257, width)`."""
        return self._tokens.view(1, IMAGE_TOKENS, self._width) + image.mean()
