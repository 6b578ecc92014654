"""The MultiTalk Sampler with ComfyUI's samplers and schedulers.

Latents are compared by relative norm in float32.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import torch
from PIL import Image

from comfyui_multitalk.tests.host import graphs
from comfyui_multitalk.tests.support.websocket import Listener

if TYPE_CHECKING:
    from comfyui_multitalk.tests.support.comfyui import Server

pytestmark = pytest.mark.host

ROUNDING = 1e-5
FAST = {
    "text_guidance_start": 0.0,
    "text_guidance_end": 1.0,
    "audio_guidance_start": 0.0,
    "audio_guidance_end": 1.0,
    "step_cache": 0.0,
}
"""The fast modes' inputs, with the values that leave them off."""
Sampled = dict[str, Any]


def test_sampler_with_comfyui_around_it_gives_the_cores_latents(sampled: Sampled) -> None:
    worst = {name: row["sampler"] for name, row in sampled["equality"].items()}
    assert len(worst) == 8
    assert max(worst.values()) < ROUNDING, worst


@pytest.mark.parametrize("method", ["multitalk", "infinitetalk"])
def test_later_segment_by_euler_gives_the_cores_latents(sampled: Sampled, method: str) -> None:
    first, second = sampled["segments"][method]
    assert first < ROUNDING
    assert second < ROUNDING


def test_every_sampler_counts_its_steps(sampled: Sampled) -> None:
    assert len(sampled["kept"]) > 40
    for name, row in sampled["kept"].items():
        assert row["steps"] == [[step, 4] for step in range(4)], name


def test_every_sampler_ends_with_the_frames_taken_over(sampled: Sampled) -> None:
    for name, row in sampled["kept"].items():
        assert row["end"], name
        assert 0 < row["rest"] < 100, name  # the new frames are numbers, and not all the same


def test_every_sampler_shows_infinitetalk_clean_frames_at_every_call(sampled: Sampled) -> None:
    rows = {n: row for n, row in sampled["kept"].items() if n.endswith("infinitetalk")}
    assert len(rows) > 20
    for name, row in rows.items():
        assert row["clean"] == 0, name


def test_every_sampler_shows_multitalk_frames_at_the_calls_noise_level(sampled: Sampled) -> None:
    rows = {n: row for n, row in sampled["kept"].items() if n.endswith(", multitalk")}
    assert len(rows) > 20
    for name, row in rows.items():
        # 192 numbers: their spread is 1 within a tenth or two if the level is right.
        assert all(0.8 < spread < 1.2 for spread in row["noise"]), name
        if name == "euler, multitalk":
            assert row["same_noise"] > 1  # upstream draws anew at each step
        else:
            assert row["same_noise"] < 1e-3, name


@pytest.mark.parametrize("scheduler", ["multitalk", "simple", "beta"])
def test_samplers_find_the_spread_of_a_model_of_which_all_is_known(
    sampled: Sampled, scheduler: str
) -> None:
    spreads = {n: v for n, v in sampled["right"].items() if n.endswith(f", {scheduler}")}
    left_out = spreads.pop(f"res_multistep_ancestral, {scheduler}")
    single_step = spreads.pop(f"lcm, {scheduler}")  # takes the mean of what may have been
    assert len(spreads) > 20
    assert all(0.8 < value < 1.25 for value in spreads.values()), spreads
    assert 0.5 < single_step < 0.8
    assert left_out > 1.3  # why it is left out


def test_schedules_fall_from_pure_noise_to_none_in_as_many_steps(sampled: Sampled) -> None:
    for name, levels in sampled["schedules"].items():
        steps = int(name.split(", ")[1])
        assert len(levels) == steps + 1, name
        assert (levels[0], levels[-1]) == (1.0, 0.0), name
        assert levels == sorted(levels, reverse=True), name


def test_upstreams_schedule_is_euler_s_and_others_skip_its_last_level_but_one(
    sampled: Sampled,
) -> None:
    schedules = sampled["schedules"]
    assert schedules["multitalk, 4, euler"][-2] < 0.01
    assert schedules["multitalk, 4, lcm"][-2] > 0.6
    assert schedules["simple, 4, euler"] == schedules["simple, 4, lcm"]
    assert schedules["simple, 4, uni_pc"] != schedules["simple, 4, lcm"]  # as KSampler has it


def test_previews_are_shown_at_every_step_finer_with_a_small_autoencoder(
    sampled: Sampled,
) -> None:
    assert sampled["previews"]["latent2rgb"] == [[6, 4]] * 4
    assert sampled["previews"]["taesd"] == [[48, 32]] * 4


def test_what_a_sampler_draws_is_fixed_by_seed_and_segment(sampled: Sampled) -> None:
    assert sampled["draws"]["again"]
    assert sampled["draws"]["later"]


def frames(server: Server, graph: graphs.Graph) -> torch.Tensor:
    """Run a graph and give the frames of the sampler as bytes."""
    graph = graphs.without(graphs.without(graph, "SaveVideo"), "MTK_PreviewStrip")
    sampler = next(k for k, v in graph.items() if v["class_type"] == "MTK_Sampler")
    graph["shown"] = {"class_type": "PreviewImage", "inputs": {"images": [sampler, 0]}}
    history = server.run(graph)
    assert history["status"]["status_str"] == "success", history["status"]
    folder = server.base / "temp"
    pictures = []
    for entry in history["outputs"]["shown"]["images"]:
        with Image.open(folder / entry["subfolder"] / entry["filename"]) as picture:
            data = bytearray(picture.convert("RGB").tobytes())
        pictures.append(torch.frombuffer(data, dtype=torch.uint8))
    return torch.stack(pictures)


def test_prompt_from_before_there_was_a_choice_gives_the_same_video(server: Server) -> None:
    old = graphs.short(seed=61)
    for name in ("sampler_name", "scheduler", *FAST):
        graphs.node(old, "MTK_Sampler")["inputs"].pop(name, None)
    new = graphs.short(seed=61, sampler_name="euler", scheduler="multitalk", **FAST)
    other = graphs.short(seed=61, steps=2, sampler_name="uni_pc", scheduler="simple")
    expected = frames(server, old)
    assert torch.equal(frames(server, new), expected)
    assert not torch.equal(frames(server, other), expected)


@pytest.mark.parametrize(
    ("sampler_name", "scheduler"), [("dpmpp_2m_sde", "multitalk"), ("uni_pc", "beta")]
)
def test_progress_counts_the_steps_of_every_segment(
    server: Server, sampler_name: str, scheduler: str
) -> None:
    graph = graphs.short(
        steps=2,
        segment_frames=9,
        motion_frames=1,
        seed=71,
        sampler_name=sampler_name,
        scheduler=scheduler,
    )
    listener = Listener(server.url, client="samplers")
    server.submit(graph, client="samplers")
    counted, previews = [], 0
    for message in listener.messages():
        previews += "binary" in message
        data = message.get("data", {})
        if message["type"] == "progress":
            counted.append((data["value"], data["max"]))
        if message["type"] in ("execution_success", "execution_error"):
            break
    listener.close()
    assert message["type"] == "execution_success"
    assert counted == [(1, 4), (2, 4), (3, 4), (4, 4)]
    assert previews >= 4


def executed(listener: Listener) -> list[str]:
    """Give the nodes that a prompt executes, in order."""
    names = []
    for message in listener.messages():
        if message["type"] == "executing" and message["data"]["node"]:
            names.append(message["data"]["node"])
        if message["type"].startswith("execution_") and message["type"] not in (
            "execution_start",
            "execution_cached",
        ):
            break
    return names


def test_new_prompt_does_not_hear_the_voices_again(server: Server) -> None:
    graph = graphs.short(seed=81)
    server.run(graph)
    graphs.node(graph, "CLIPTextEncode")["inputs"]["text"] = "a person laughs"
    listener = Listener(server.url, client="again")
    server.submit(graph, client="again")
    kinds = {graph[name]["class_type"] for name in executed(listener)}
    listener.close()
    assert {"CLIPTextEncode", "MTK_Sampler"} <= kinds
    assert not kinds & {"MTK_AudioEmbeds", "MTK_Speaker", "MTK_LoadWav2Vec2", "MTK_LoadWan"}


def test_interrupted_run_is_not_taken_for_a_whole_one(server: Server) -> None:
    graph = graphs.short(steps=12, segment_frames=9, motion_frames=1, seed=91)
    listener = Listener(server.url, client="interrupted")
    prompt = server.submit(graph, client="interrupted")
    for message in listener.messages():  # in the second of two segments
        if message["type"] == "progress" and message["data"]["value"] >= 13:
            break
    listener.close()
    server.post("/interrupt", {"prompt_id": prompt})
    history = server.wait(prompt, seconds=60)
    assert "execution_interrupted" in [kind for kind, _ in history["status"]["messages"]]
    assert not history["outputs"]
    listener = Listener(server.url, client="whole")
    prompt = server.submit(graph, client="whole")
    counted = []
    for message in listener.messages():
        if message["type"] == "progress":
            counted.append(message["data"]["value"])
        if message["type"] == "execution_success":
            break
    listener.close()
    assert counted == list(range(1, 25))
    said = [t for out in server.wait(prompt)["outputs"].values() for t in out.get("text", ())]
    assert said == ["64 x 64 pixels, 15 frames = 0.60 s"]


def test_unknown_sampler_is_rejected_as_comfyui_does(server: Server) -> None:
    status, answer = server.post("/prompt", {"prompt": graphs.short(sampler_name="ddpm")})
    assert status == 400
    ((error,),) = [entry["errors"] for entry in answer["node_errors"].values()]
    assert error["type"] == "value_not_in_list"
