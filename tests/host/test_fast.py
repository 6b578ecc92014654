"""Fast modes in ComfyUI: the same latents as core's, and fewer calls of the model.

Latents are compared by relative norm in float32.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from comfyui_multitalk.tests.host import graphs
from comfyui_multitalk.tests.support.comfyui import failure

if TYPE_CHECKING:
    from comfyui_multitalk.tests.support.comfyui import Server

pytestmark = pytest.mark.host

ROUNDING = 1e-5
Sampled = dict[str, Any]
CACHES = ("cache", "cache, apg", "cache, one pass", "both")
MODES = ("parts", "parts, apg", *CACHES)
NOISY = ("euler_ancestral", "lcm", "dpmpp_2m_sde", "er_sde")


@pytest.mark.parametrize("mode", MODES)
def test_fast_mode_in_comfyui_gives_the_cores_latents(sampled: Sampled, mode: str) -> None:
    row = sampled["fast"][mode]
    first, second = row["sampler"]  # the second has frames that are noised anew
    assert first < ROUNDING
    assert second < ROUNDING
    assert row["guider"] < ROUNDING
    assert row["off"] > 100 * ROUNDING  # the mode does something


def test_parts_of_the_steps_run_their_passes_alone(sampled: Sampled) -> None:
    assert sampled["fast"]["parts"]["batches"] == [2, 2, 3, 3, 2, 2, 2, 2]
    assert sampled["fast"]["parts, apg"]["batches"] == [2, 2, 3, 3, 2, 2, 2, 2]


@pytest.mark.parametrize("mode", CACHES)
def test_step_cache_runs_some_steps_alone(sampled: Sampled, mode: str) -> None:
    row = sampled["fast"][mode]
    assert 3 <= row["steps_run"] < 8
    assert 3 <= len(row["batches"]) < 8


def test_step_cache_saves_calls_and_stays_near_with_samplers_that_add_no_noise(
    sampled: Sampled,
) -> None:
    rows = {name: row for name, row in sampled["cached"].items() if name not in NOISY}
    assert len(rows) == 6
    for name, row in rows.items():
        assert row["saved"] > 0.5, name
        assert 0 < row["off"] < 0.15, name
        assert 0.8 < row["spread"] < 1.25, name


def test_step_cache_runs_every_step_where_the_sampler_adds_noise(sampled: Sampled) -> None:
    for name in NOISY:
        assert sampled["cached"][name]["saved"] == 0, name
        assert sampled["cached"][name]["off"] == 0, name


def test_part_without_steps_is_said_on_the_sampler(server: Server) -> None:
    graph = graphs.short(text_guidance_start=0.5, text_guidance_end=0.5)
    error = failure(server.run(graph))
    assert error["node_type"] == "MTK_Sampler"
    assert (
        "`text_guidance_start` is 0.5 and `text_guidance_end` is 0.5" in error["exception_message"]
    )
