"""The schedule against its formulas."""

from __future__ import annotations

import pytest
import torch

from comfyui_multitalk.multitalk_core.method.schedule import (
    add_noise,
    clean_estimate,
    euler_step,
    moment,
    timesteps,
)


def test_timesteps_fall_from_1000_to_0() -> None:
    made = timesteps(40, shift=7.0)
    assert len(made) == 41
    assert (made[0], made[-1]) == (1000.0, 0.0)
    assert list(made) == sorted(made, reverse=True)


def test_timesteps_without_shift_are_even_down_to_1() -> None:
    assert timesteps(4, shift=1.0) == pytest.approx((1000.0, 667.0, 334.0, 1.0, 0.0))


def test_timesteps_shift_moves_them_up() -> None:
    # u = 0.667: 7 * 0.667 / (1 + 6 * 0.667)
    assert timesteps(4, shift=7.0)[1] == pytest.approx(1000 * 4.669 / 5.002)


def test_timesteps_single_step_goes_from_noise_to_clean() -> None:
    assert timesteps(1, shift=7.0) == (1000.0, 0.0)


@pytest.mark.parametrize(
    ("steps", "published"),
    [(4, (1000.0, 937.5, 833.3333129882812, 625.0, 0.0)), (2, (1000.0, 833.3333129882812, 0.0))],
)
def test_timesteps_flashtalk_are_those_of_its_own_code(
    steps: int, published: tuple[float, ...]
) -> None:
    # what its pipeline prepares from 1000, 750, 500, 250 (or 1000, 500) with shift 5, in float32
    assert timesteps(steps, shift=5.0, method="flashtalk") == pytest.approx(published, rel=1e-7)


def test_euler_steps_along_the_true_velocity_end_at_the_clean_latents() -> None:
    noise, clean = torch.tensor([1.0, -2.0]), torch.tensor([0.5, 3.0])
    velocity = noise - clean
    half = euler_step(noise, velocity, now=1000.0, later=400.0)
    torch.testing.assert_close(half, add_noise(clean, noise, timestep=400.0))
    torch.testing.assert_close(clean_estimate(half, velocity, now=400.0), clean)


def test_add_noise_at_the_ends_is_noise_and_clean() -> None:
    noise, clean = torch.randn(3), torch.randn(3)
    assert torch.equal(add_noise(clean, noise, timestep=1000.0), noise)
    assert torch.equal(add_noise(clean, noise, timestep=0.0), clean)


def test_moment_of_each_entry_is_its_own_step() -> None:
    schedule = timesteps(40, shift=7.0)
    assert [moment(entry, schedule).step for entry in schedule[:-1]] == list(range(40))
    in_float32 = torch.tensor(schedule[:-1]).div(1000).mul(1000).tolist()
    assert [moment(entry, schedule).step for entry in in_float32] == list(range(40))


@pytest.mark.parametrize(
    ("timestep", "step"),
    [(1000.5, 0), (999.0, 0), (600.1, 0), (600.0, 1), (301.0, 1), (299.0, 2), (1.0, 2)],
)
def test_moment_between_two_entries_belongs_to_the_step_between(timestep: float, step: int) -> None:
    now = moment(timestep, (1000.0, 600.0, 300.0, 0.0))
    assert (now.timestep, now.step, now.num_steps) == (timestep, step, 3)
    assert now.done == pytest.approx(step / 3)
