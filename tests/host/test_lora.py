"""LoRAs of ComfyUI on quantised weights: the effect they have on bf16, and no trace of them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from comfyui_multitalk.tests.host.digests import segment, shown

if TYPE_CHECKING:
    from comfyui_multitalk.tests.support.comfyui import Server

pytestmark = pytest.mark.host

Citizen = dict[str, Any]


@pytest.mark.parametrize("type", ["Q8_0", "Q4_K"])
def test_lora_effect_on_quantised_weights_is_that_on_bf16(citizen: Citizen, type: str) -> None:
    seen = citizen["figures"][type]
    assert seen["packed"]
    assert seen["effect"] > 0.1
    # All relative to the output of the bf16 base.
    assert seen["effect_error"] < 0.5 * seen["quantisation_error"]
    assert seen["cosine"] > {"Q8_0": 0.9999, "Q4_K": 0.99}[type]


@pytest.mark.parametrize("type", ["Q8_0", "Q4_K"])
def test_lora_is_added_to_the_decoded_weight_without_rounding(citizen: Citizen, type: str) -> None:
    assert citizen["figures"][type]["weight_change"] < 1e-5


def test_loras_add_up_as_on_comfyuis_wan(citizen: Citizen) -> None:
    several = citizen["several"]
    assert several["second_adds"] > 0.01
    assert several["against_comfyui"] < 1e-4


@pytest.mark.parametrize(
    "kind", ["plain", "difference", "dora", "part", "function", "model", "misfit"]
)
def test_lora_arithmetic_is_comfyuis(citizen: Citizen, kind: str) -> None:
    """Plain LoRAs by one product, all else by ComfyUI; what misfits adds nothing."""
    seen = citizen["lora_arithmetic"][kind]
    assert seen["distance"] < 1e-6
    assert seen["one_product"] == (kind == "plain")


def test_loras_of_strength_zero_change_no_bit(citizen: Citizen) -> None:
    assert citizen["several"]["zero"]


def test_removed_lora_leaves_no_bit_and_comes_back_the_same(citizen: Citizen) -> None:
    several = citizen["several"]
    assert several["restored"]
    assert several["talking_restored"]
    assert several["bytes_unchanged"]
    assert several["again"]


def test_bypass_lora_gives_the_same(citizen: Citizen) -> None:
    assert citizen["several"]["bypass"] < 1e-4


def test_lora_hook_on_both_conditionings_is_the_lora(citizen: Citizen) -> None:
    assert citizen["lora_hooks"]["both"] < 1e-6
    assert citizen["lora_hooks"]["on_top"] < 1e-5  # of a LoRA of the MODEL


@pytest.mark.parametrize("name", ["positive", "each its own"])
def test_lora_hook_acts_on_its_own_conditioning(citizen: Citizen, name: str) -> None:
    seen = citizen["lora_hooks"][name]
    assert seen["effect"] > 0.01
    assert seen["against_comfyui"] < 1e-4


def test_lora_hooks_are_gone_after_sampling(citizen: Citizen) -> None:
    assert citizen["lora_hooks"]["restored"]


def test_changes_of_norms_biases_and_modulation_arrive_and_go(citizen: Citizen) -> None:
    parts = citizen["plain_parts"]
    assert parts["added"] == 4
    assert parts["effect"] > 0.01
    assert parts["against_edited"] < 1e-6
    assert parts["restored"]


def test_clones_carry_the_lora_and_share_the_bytes(citizen: Citizen) -> None:
    for name, clone in citizen["clones"].items():
        assert clone["equal"], name
        assert clone["same_memory"], name
        assert clone["size"], name
        assert clone["own_model"] == (name == "deep")


@pytest.mark.parametrize(
    ("attempt", "said"),
    [
        ("merge", "A quantised MODEL cannot be merged into another."),
        ("save", "A quantised MODEL cannot be saved."),
        ("model as lora", "Create Hook Model as LoRA cannot change a quantised MODEL."),
    ],
)
def test_what_bytes_cannot_take_part_in_is_refused(
    citizen: Citizen, attempt: str, said: str
) -> None:
    assert said in citizen["refused"][attempt]
    assert not citizen["refused"]["written"]


def test_lora_node_changes_the_video_and_leaves_no_trace(server: Server) -> None:
    def run(*strengths: float) -> str:
        loras: dict[str, tuple[str, dict[str, Any]]] = {
            f"lora{number}": (
                "LoraLoaderModelOnly",
                {"lora_name": "lora_tiny.safetensors", "strength_model": strength},
            )
            for number, strength in enumerate(strengths)
        }
        return shown(server.run(segment(**loras)))

    plain, one = run(), run(1.0)
    assert one != plain
    assert run(0.0) == plain
    assert run(1.0, 0.5) not in (plain, one)
    assert run() == plain
