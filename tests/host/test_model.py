"""Our MODEL under the nodes of ComfyUI: what they do to it has the effect it has on its own Wan."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from comfyui_multitalk.tests.host.digests import segment, shown

if TYPE_CHECKING:
    from comfyui_multitalk.tests.support.comfyui import Server

pytestmark = pytest.mark.host

Citizen = dict[str, Any]
CHANGES = (
    "shift",
    "scale rope",
    "skip layer guidance",
    "attention override",
    "attn1_patch",
    "attn1_patch q k",
    "attn2_patch",
    "double_block",
    "block replace",
    "unet function wrapper",
    "easy cache",
    "lazy cache",
)

NODES: dict[str, dict[str, Any]] = {
    "ScaleROPE": {
        f"{change}_{axis}": 0.5 for change in ("scale", "shift") for axis in ("x", "y", "t")
    },
    "EasyCache": {
        "reuse_threshold": 3.0,
        "start_percent": 0.0,
        "end_percent": 1.0,
        "verbose": False,
    },
    "WanContextWindowsManual": {
        "context_length": 17,
        "context_overlap": 8,
        "context_schedule": "standard_static",
        "context_stride": 1,
        "closed_loop": False,
        "fuse_method": "pyramid",
        "freenoise": False,
        "retain_first_frame": False,
        "split_conds_to_windows": False,
    },
}


def test_every_change_is_tested(citizen: Citizen) -> None:
    assert set(citizen["hooks"]) == {"nothing", *CHANGES}


def test_unchanged_model_samples_as_comfyuis_wan(citizen: Citizen) -> None:
    assert citizen["hooks"]["nothing"]["against_comfyui"] < 1e-4  # relative norm in float32


@pytest.mark.parametrize("name", CHANGES)
def test_change_of_the_model_acts_as_on_comfyuis_wan(citizen: Citizen, name: str) -> None:
    seen = citizen["hooks"][name]
    if not seen["known"]:
        pytest.skip(f"The Wan model of this ComfyUI calls no {name}; get ComfyUI 0.33 or later")
    assert seen["effect"] > 1e-3
    assert seen["against_comfyui"] < 1e-4


def test_sampler_custom_advanced_gives_what_ksampler_gives(citizen: Citizen) -> None:
    assert citizen["custom_sampling"]["equal"]


def test_model_with_adapter_samples_without_voices_as_the_base(citizen: Citizen) -> None:
    assert citizen["talking"]["equal"]


def test_context_windows_act_as_on_comfyuis_wan(citizen: Citizen) -> None:
    seen = citizen["context_windows"]
    assert seen["effect"] > 1e-3
    assert seen["against_comfyui"] < 1e-4


def test_voices_follow_a_context_window(citizen: Citizen) -> None:
    assert citizen["context_windows"]["audio_follows"]
    assert citizen["context_windows"]["masks_stay"]


@pytest.mark.parametrize("part", ["whole", "blocks"])
def test_torch_compile_takes_the_model_in_one_graph(citizen: Citizen, part: str) -> None:
    seen = citizen["compiled"][part]
    assert seen["graphs"] == 1  # the blocks are traced once for all
    assert seen["distance"] < 1e-5


def test_attention_is_ours_only_where_nobody_has_chosen(citizen: Citizen) -> None:
    seen = citizen["attention_choice"]
    assert seen["usual"]  # torch's own, without a card
    assert seen["calls"]["nobody"] >= seen["blocks"]
    assert seen["calls"]["comfyui"] == 0  # nor ComfyUI's for text, photo and voices
    assert seen["calls"]["server"] == seen["calls"]["node"] == 0
    assert seen["distance"] < 1e-5


def test_torch_compile_leaves_the_model_as_it_was(citizen: Citizen) -> None:
    assert citizen["compiled"]["restored"]


def test_conditioning_without_picture_tokens_says_where_to_get_them(citizen: Citizen) -> None:
    assert "Encode the photo with CLIP Vision Encode" in citizen["foreign_conditions"]["no picture"]


def test_conditioning_of_another_wan_model_is_refused(citizen: Citizen) -> None:
    said = citizen["foreign_conditions"]["other model"]
    assert "time_dim_concat" in said
    assert "WanImageToVideo" in said


@pytest.mark.parametrize("kind", NODES)
def test_node_on_the_model_reaches_a_guided_segment(server: Server, kind: str) -> None:
    changed = shown(server.run(segment(node=(kind, NODES[kind]))))
    assert changed != shown(server.run(segment()))
