"""The step cache: when the model runs, and what stands in for its answer when it does not."""

from __future__ import annotations

import weakref
from collections import Counter
from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from comfyui_multitalk.multitalk_core.config import ApgConfig, SamplingConfig
from comfyui_multitalk.multitalk_core.method.conditioning import Motion, draw_noise
from comfyui_multitalk.multitalk_core.method.guidance import (
    FULL,
    UNCONDITIONAL,
    WITHOUT_AUDIO,
    WITHOUT_TEXT,
    Guidance,
    Pass,
)
from comfyui_multitalk.multitalk_core.method.sampler import EulerSampler, Velocities, euler
from comfyui_multitalk.multitalk_core.method.schedule import Moment, moment, timesteps
from comfyui_multitalk.multitalk_core.method.step_cache import StepCache

SHAPE = (1, 16, 4, 2, 4)
BOTH = (FULL, WITHOUT_TEXT, UNCONDITIONAL)
Field = Callable[[Tensor, float, Pass], Tensor]


def draw(seed: int, *shape: int) -> Tensor:
    return draw_noise(shape or SHAPE, torch.Generator().manual_seed(seed))


class Model(EulerSampler):
    """A sampler of a known velocity field that notes its calls."""

    def __init__(self, field: Field, *, motion: Motion | None = None) -> None:
        self.inputs: Any = SimpleNamespace(
            condition=SimpleNamespace(motion=motion),
            generator=torch.Generator().manual_seed(2),
            on_step=lambda *_: None,
        )
        self.asked: list[tuple[float, tuple[Pass, ...]]] = []
        self._field = field

    def velocities(self, *_: Any, **__: Any) -> Velocities:
        def answer(latents: Tensor, timestep: float, passes: Sequence[Pass]) -> list[Tensor]:
            self.asked.append((timestep, tuple(passes)))
            return [self._field(latents, timestep, one) for one in passes]

        return answer

    def steps(self, config: SamplingConfig) -> list[int]:
        """Give the steps at which it was asked."""
        schedule = timesteps(config.steps, shift=config.shift)
        return [moment(timestep, schedule).step for timestep, _ in self.asked]


def constant(_: Tensor, __: float, which: Pass) -> Tensor:
    return draw([*BOTH, WITHOUT_AUDIO].index(which) + 10)


def curved(latents: Tensor, timestep: float, which: Pass) -> Tensor:
    """A field that turns on the way."""
    return constant(latents, timestep, which) + (timestep / 1000) ** 2 * draw(20)


def sample(model: Model, config: SamplingConfig) -> Tensor:
    model.inputs.config = config
    return model.sample(draw(1), model.inputs)


def fast(**settings: Any) -> SamplingConfig:
    return SamplingConfig(**{"steps": 10, "shift": 3.0, "step_cache": 0.1, **settings})


def distance(one: Tensor, other: Tensor) -> float:
    return float((one - other).norm() / other.norm())


SCALES = {
    "three-passes": {},
    "audio-alone": {"text_guidance": 1.0},
    "text-alone": {"audio_guidance": 1.0},
    "one-pass": {"text_guidance": 1.0, "audio_guidance": 1.0},
    "apg": {"apg": ApgConfig()},
}


@pytest.mark.parametrize("scales", SCALES.values(), ids=SCALES)
def test_constant_velocity_runs_the_ends_alone_and_is_exact(scales: dict[str, Any]) -> None:
    quick, whole = Model(constant), Model(constant)
    latents = sample(quick, fast(**scales))
    assert distance(latents, sample(whole, fast(**scales, step_cache=0.0))) < 1e-5
    assert quick.steps(fast()) == [0, 1, 9]
    assert whole.steps(fast()) == list(range(10))
    assert {passes for _, passes in quick.asked} == {passes for _, passes in whole.asked}


@pytest.mark.parametrize("scales", SCALES.values(), ids=SCALES)
def test_threshold_of_zero_gives_the_bits_of_no_cache(scales: dict[str, Any]) -> None:
    config = fast(**scales, step_cache=0.0)
    guidance, velocities = Guidance(config), Model(curved).velocities()
    passes = guidance.passes(0.0)
    plain = euler(
        draw(1),
        lambda latents, now: guidance.combine(passes, velocities(latents, now, passes)),
        schedule=timesteps(config.steps, shift=config.shift),
        motion=None,
        generator=torch.Generator(),
        on_step=lambda *_: None,
    )
    assert torch.equal(sample(Model(curved), config), plain)


def test_higher_threshold_runs_fewer_steps_and_strays_further() -> None:
    whole = sample(Model(curved), fast(steps=30, step_cache=0.0))
    ran, strayed = [], []
    for threshold in (0.001, 0.05, 0.2, 0.8):
        model, config = Model(curved), fast(steps=30, step_cache=threshold)
        strayed.append(distance(sample(model, config), whole))
        ran.append(len(model.asked))
    assert ran[0] == 30
    assert strayed[0] == 0.0
    assert ran == sorted(set(ran), reverse=True)
    assert strayed == sorted(set(strayed))


def at(step: int, *, num_steps: int = 10) -> Moment:
    return Moment(1000.0 - 100 * step, step, num_steps)


def known(threshold: float = 0.5, *, fixed_frames: int = 0) -> StepCache:
    """A cache after two steps: the velocity, of norm 1, changed 0.1 times as far as the latents."""
    cache = StepCache(threshold, fixed_frames=fixed_frames)
    free = torch.zeros(SHAPE)
    free[0, 0, -1, 0, 0] = 1.0
    for way, velocity in [(0.0, 0.8), (2.0, 1.0)]:
        full = free * velocity
        cache.keep(free * way, BOTH, [full, full + 1, full + 2])
    return cache


def moved(way: float, *, frame: int = -1) -> Tensor:
    """Latents so far from those of the last step."""
    latents = torch.zeros(SHAPE)
    latents[0, 0, -1, 0, 0] = 2.0
    latents[0, 0, frame, 1, 1] = way
    return latents


@pytest.mark.parametrize(("way", "good"), [(0.0, True), (4.99, True), (5.01, False)])
def test_answer_is_good_until_the_estimated_change_reaches_the_threshold(
    way: float, good: bool
) -> None:
    found = known(0.5).reuse(moved(way), at(5), BOTH)  # 0.1 * 5 = 0.5
    assert (found is not None) == good


@pytest.mark.parametrize(
    ("step", "good"), [(0, False), (1, False), (2, True), (8, True), (9, False)]
)
def test_first_two_steps_and_the_last_always_run(step: int, good: bool) -> None:
    assert (known().reuse(moved(0.0), at(step), BOTH) is not None) == good


def test_what_is_reused_is_the_velocity_of_each_asked_pass() -> None:
    found = known().reuse(moved(1.0), at(5), (UNCONDITIONAL, FULL))
    assert found is not None
    assert torch.equal(found[0], moved(0.0) / 2 + 2)
    assert torch.equal(found[1], moved(0.0) / 2)


def test_pass_that_was_not_asked_last_makes_the_model_run() -> None:
    assert known().reuse(moved(0.0), at(5), (FULL, WITHOUT_AUDIO)) is None


def test_one_call_is_not_enough_to_know_the_rate() -> None:
    cache = StepCache(0.5)
    cache.keep(moved(0.0), BOTH, [draw(1)] * 3)
    assert cache.reuse(moved(0.0), at(4), BOTH) is None


def test_threshold_of_zero_keeps_no_tensor() -> None:
    cache, velocities = StepCache(0.0), [draw(seed) for seed in range(3)]
    kept = [weakref.ref(velocity) for velocity in velocities]
    cache.keep(moved(0.0), BOTH, velocities)
    del velocities
    assert [one() for one in kept] == [None] * 3


def test_fixed_frames_do_not_count() -> None:
    held = known(fixed_frames=2)
    assert held.reuse(moved(100.0, frame=1), at(5), BOTH) is not None
    assert held.reuse(moved(100.0, frame=2), at(5), BOTH) is None
    assert known().reuse(moved(100.0, frame=1), at(5), BOTH) is None


def test_motion_latents_noised_anew_at_each_step_do_not_hinder_reuse() -> None:
    clean = draw(3)
    motion = Motion(draw(4, 1, 16, 2, 2, 4), clean=False, draws=True)

    def known_clean(latents: Tensor, timestep: float, _: Pass) -> Tensor:
        return (latents - clean) / (timestep / 1000)

    model = Model(known_clean, motion=motion)
    latents = sample(model, fast())
    assert model.steps(fast()) == [0, 1, 9]
    torch.testing.assert_close(latents[:, :, 2:], clean[:, :, 2:])
    assert torch.equal(latents[:, :, :2], motion.latents)


def test_next_segment_knows_nothing_of_the_last() -> None:
    model, config = Model(curved), fast(steps=20)
    first = sample(model, config)
    asked = len(model.asked)
    assert torch.equal(sample(model, config), first)
    assert model.asked[asked:] == model.asked[:asked]


def test_answers_are_not_changed_by_what_is_made_of_them() -> None:
    cache = known()
    before = cache.reuse(moved(0.0), at(5), BOTH)
    assert before is not None
    before.reverse()
    after = cache.reuse(moved(0.0), at(5), BOTH)
    assert after is not None
    assert torch.equal(after[0], before[2])


def test_part_of_the_steps_runs_its_passes_alone() -> None:
    config = fast(steps=8, step_cache=0.0, text_guidance_end=0.5, audio_guidance_start=0.25)
    model = Model(constant)
    sample(model, config)
    text, both, audio = (FULL, WITHOUT_TEXT), BOTH, (FULL, WITHOUT_AUDIO)
    assert [passes for _, passes in model.asked] == [text] * 2 + [both] * 2 + [audio] * 4


@pytest.mark.parametrize("apg", [None, ApgConfig()], ids=["plain", "apg"])
def test_cache_runs_where_a_guidance_ends_and_stays_exact(apg: ApgConfig | None) -> None:
    config = fast(steps=12, text_guidance_end=0.5, apg=apg)
    quick = Model(constant)
    latents = sample(quick, config)
    whole = sample(Model(constant), fast(steps=12, text_guidance_end=0.5, apg=apg, step_cache=0.0))
    assert distance(latents, whole) < 1e-5
    assert quick.steps(config) == [0, 1, 6, 11]  # at 6 the pass without audio is new
    ran = Counter(one for _, passes in quick.asked for one in passes)
    assert ran == {FULL: 4, WITHOUT_TEXT: 2, UNCONDITIONAL: 2, WITHOUT_AUDIO: 2}


def test_cache_goes_on_with_the_passes_left_where_both_guidances_end() -> None:
    config = fast(steps=12, text_guidance_end=0.5, audio_guidance_end=0.5)
    model = Model(constant)
    sample(model, config)
    assert model.asked[-1][1] == (FULL,)
    assert model.steps(config) == [0, 1, 11]
