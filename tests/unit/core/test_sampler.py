"""Sampling one segment: upstream's Euler steps, and what another sampler is given."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from torch import Generator, Tensor

from comfyui_multitalk.multitalk_core.config import SamplingConfig
from comfyui_multitalk.multitalk_core.engine import Engine, Step
from comfyui_multitalk.multitalk_core.errors import MultiTalkError
from comfyui_multitalk.multitalk_core.geometry import Size
from comfyui_multitalk.multitalk_core.inputs.scene import Scene, Text, compose
from comfyui_multitalk.multitalk_core.inputs.speech import Speech
from comfyui_multitalk.multitalk_core.method.conditioning import Motion, draw_noise
from comfyui_multitalk.multitalk_core.method.guidance import FULL, UNCONDITIONAL, WITHOUT_TEXT
from comfyui_multitalk.multitalk_core.method.sampler import (
    EulerSampler,
    SegmentInputs,
    euler,
    silent,
)
from comfyui_multitalk.multitalk_core.method.schedule import add_noise, timesteps
from comfyui_multitalk.multitalk_core.model.attention import Attends, attend
from comfyui_multitalk.tests.support.stand_ins import MeanImageEncoder, MeanVAE
from comfyui_multitalk.tests.support.transformer import AUDIO, CONFIG, small_model

SCHEDULE = timesteps(4, shift=3.0)
SAMPLING = SamplingConfig(steps=2, segment_frames=9, motion_frames=5, color_match=0.0)


def seeded(seed: int = 1) -> Generator:
    return torch.Generator().manual_seed(seed)


def draw(*shape: int, seed: int = 0) -> Tensor:
    return draw_noise(shape, seeded(seed))


class Known:
    """A model whose clean latents are known; keeps what it is shown."""

    def __init__(self, clean: Tensor) -> None:
        self.clean = clean
        self.shown: list[tuple[Tensor, float]] = []

    def __call__(self, latents: Tensor, timestep: float) -> Tensor:
        self.shown.append((latents, timestep))
        return (latents - self.clean) / (timestep / 1000)


def step_by_step(model: Known, *, motion: Motion | None = None, on_step: Any = None) -> Tensor:
    return euler(
        draw(1, 16, 3, 2, 4, seed=2),
        model,
        schedule=SCHEDULE,
        motion=motion,
        generator=seeded(3),
        on_step=on_step or (lambda *_: None),
    )


def test_euler_ends_where_the_model_points() -> None:
    clean = draw(1, 16, 3, 2, 4)
    torch.testing.assert_close(step_by_step(Known(clean)), clean)


def test_euler_tells_every_step_and_what_it_points_to() -> None:
    clean = draw(1, 16, 3, 2, 4)
    told: list[tuple[int, int]] = []

    def on_step(step: int, num_steps: int, latents: Tensor) -> None:
        told.append((step, num_steps))
        torch.testing.assert_close(latents, clean)

    step_by_step(Known(clean), on_step=on_step)
    assert told == [(step, 4) for step in range(4)]


def test_euler_tells_the_frames_taken_over_as_they_are() -> None:
    motion = Motion(draw(1, 16, 2, 2, 4, seed=9), clean=False, draws=True)
    told: list[Tensor] = []
    step_by_step(
        Known(draw(1, 16, 3, 2, 4)), motion=motion, on_step=lambda *given: told.append(given[-1])
    )
    assert len(told) == 4
    assert all(torch.equal(latents[:, :, :2], motion.latents) for latents in told)


def test_euler_visits_the_schedule() -> None:
    model = Known(draw(1, 16, 3, 2, 4))
    step_by_step(model)
    assert [timestep for _, timestep in model.shown] == list(SCHEDULE[:-1])


def test_euler_noises_the_motion_latents_anew_at_each_step() -> None:
    motion = Motion(draw(1, 16, 2, 2, 4, seed=9), clean=False, draws=True)
    model = Known(draw(1, 16, 3, 2, 4))
    latents = step_by_step(model, motion=motion)
    source = seeded(3)
    for shown, timestep in model.shown:
        noise = draw_noise(motion.latents.shape, source)
        expected = add_noise(motion.latents, noise, timestep=timestep)
        assert torch.equal(shown[:, :, :2], expected)
    assert torch.equal(latents[:, :, :2], motion.latents)


def test_euler_stops_where_on_step_raises() -> None:
    model = Known(draw(1, 16, 3, 2, 4))

    def stop(*_: Any) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        step_by_step(model, on_step=stop)
    assert len(model.shown) == 1


def test_euler_latents_that_are_no_numbers_are_an_error() -> None:
    with pytest.raises(MultiTalkError, match="The latents of step 1 of 4 are not finite"):
        step_by_step(Known(torch.full((1, 16, 3, 2, 4), float("nan"))))


def test_euler_renoised_steps_are_flashtalks() -> None:
    """Literals: what the loop of its published pipeline shows this model, in float32."""
    noise = draw(1, 16, 3, 1, 2, seed=7)
    generator = seeded(7)
    draw_noise(noise.shape, generator)  # one generator draws noise and steps
    taken_over = torch.arange(32.0).view(1, 16, 2, 1, 1).expand(-1, -1, -1, -1, 2) / 32
    shown: list[list[float]] = []

    def model(latents: Tensor, timestep: float) -> Tensor:
        assert torch.equal(latents[:, :, :2], taken_over)
        shown.append([timestep, *latents[0, :2, 2].flatten().tolist()])
        return 0.5 * latents + timestep / 1000

    latents = euler(
        noise,
        model,
        schedule=timesteps(4, shift=5.0, method="flashtalk"),
        motion=Motion(taken_over, clean=True, draws=False),
        renoised=True,
        generator=generator,
        on_step=lambda *_: None,
    )
    published = (
        (1000.0, -0.16699602, 0.28514996, -1.1597203, -0.46015716),
        (937.5, 0.05175969, -0.07134808, -1.2373384, 1.583562),
        (833.3333, 0.9283763, -0.8501415, 0.3595879, 0.54584455),
        (625.0, 0.21194004, -1.0941786, 0.50755924, -0.6683095),
    )
    for step, expected in zip(shown, published, strict=True):
        assert step == pytest.approx(expected, rel=1e-5)
    last = (-0.24491622, -1.1428728, -0.04167801, -0.85008776)
    assert latents[0, :2, 2].flatten().tolist() == pytest.approx(last, rel=1e-5)
    assert float(latents[0, :, 2].double().sum()) == pytest.approx(-16.891789, rel=1e-6)


@pytest.mark.parametrize(("clean", "level"), [(True, 0.0), (False, 0.25)])
def test_motion_is_held_at_a_noise_level_in_a_whole_batch(clean: bool, level: float) -> None:
    motion = Motion(draw(1, 16, 2, 2, 4, seed=9), clean=clean, draws=True)
    latents, noise = draw(2, 16, 3, 2, 4), draw(1, 16, 2, 2, 4, seed=4)
    before = latents.clone()
    held = motion.put(latents, timestep=250.0, noise=noise)
    for row in held:
        expected = (1 - level) * motion.latents[0] + level * noise[0]
        torch.testing.assert_close(row[:, :2], expected)
    assert torch.equal(held[:, :, 2:], latents[:, :, 2:])
    assert torch.equal(latents, before)


class Recording(EulerSampler):
    """Notes what it is given."""

    def __init__(self, **given: Any) -> None:
        super().__init__(small_model(), dtype=torch.float32, **given)
        self.inputs: list[SegmentInputs] = []
        self.noises: list[Tensor] = []

    def sample(self, noise: Tensor, inputs: SegmentInputs) -> Tensor:
        self.inputs.append(inputs)
        self.noises.append(noise)
        return super().sample(noise, inputs)


def video(sampler: Any, *, on_step: Any = None) -> Tensor:
    engine = Engine(
        sampler=sampler,
        vae=MeanVAE(),
        image_encoder=MeanImageEncoder(CONFIG.image_dim),
        device="cpu",
    )
    features = draw(14, AUDIO.layers, AUDIO.channels, seed=10)
    photo = torch.full((40, 60, 3), 100, dtype=torch.uint8)
    text = Text(draw(1, 4, CONFIG.text_dim, seed=6), draw(1, 6, CONFIG.text_dim, seed=7))
    scene = Scene(
        picture=compose(photo, [None], size=Size(32, 48)),
        speech=Speech(features=(features,), num_frames=12),
        text_at=lambda _: text,
    )
    parts = engine.segments(scene, SAMPLING, seed=42, on_step=on_step)
    return torch.cat([part.frames for part in parts], dim=1)


def test_sampler_is_given_each_segment_and_what_it_takes_over() -> None:
    recording = Recording()
    video(recording)
    first, second = recording.inputs
    assert (first.index, second.index) == (0, 1)
    assert first.condition.motion is None
    assert second.condition.motion is not None
    assert first.windows.shape == (1, 9, 5, AUDIO.layers, AUDIO.channels)
    assert [noise.shape for noise in recording.noises] == [(1, 16, 3, 4, 6)] * 2


def test_samplers_latents_and_steps_are_the_videos() -> None:
    steps: list[Step] = []

    class Grey:
        def sample(self, noise: Tensor, inputs: SegmentInputs) -> Tensor:
            latents = torch.zeros_like(noise)
            for step in range(3):
                inputs.on_step(step, 3, latents)
            return latents

    made = video(Grey(), on_step=steps.append)
    assert float(made.abs().max()) <= 0.11  # grey, and the stand-in's ramp
    assert [(s.segment, s.step, s.num_steps) for s in steps] == [
        (segment, step, 3) for segment in range(2) for step in range(3)
    ]


def test_sampler_uses_the_attention_backend_it_is_given_for_the_video() -> None:
    batches: list[int] = []

    def recording(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        batches.append(q.shape[0])
        return attend(q, k, v)

    watched = video(Recording(attends=Attends(video=recording)))
    steps = 2 * SAMPLING.steps  # of two segments; the three passes are one part
    assert batches == [3] * (steps * CONFIG.num_layers)
    assert torch.equal(watched, video(Recording()))


def test_silence_is_one_stream() -> None:
    windows = draw(2, 9, 5, 3, 4)
    assert silent(windows).shape == (1, 9, 5, 3, 4)
    assert not silent(windows).any()


def test_velocities_are_those_of_the_passes_in_their_order() -> None:
    recording = Recording()
    video(recording)
    latents = recording.noises[0]
    velocities = recording.velocities(recording.inputs[0], device=latents.device)
    passes = (FULL, WITHOUT_TEXT, UNCONDITIONAL)
    together = velocities(latents, 700.0, passes)
    for which, velocity in zip(passes, together, strict=True):
        (alone,) = velocities(latents, 700.0, [which])
        torch.testing.assert_close(velocity, alone)
        assert velocity.shape == latents.shape
    for one, other in itertools.pairwise(together):
        assert not torch.allclose(one, other)
