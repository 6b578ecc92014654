"""Bad input in a real graph: one clear sentence, on the node where the mistake is."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import pytest

from comfyui_multitalk.tests.host import graphs, sounds
from comfyui_multitalk.tests.host.bad_files import add_bad_files
from comfyui_multitalk.tests.support.comfyui import failure

if TYPE_CHECKING:
    from comfyui_multitalk.tests.support.comfyui import Server
    from comfyui_multitalk.tests.support.tiny import TinySet

pytestmark = pytest.mark.host

Change = Callable[[graphs.Graph], None]


@pytest.fixture(scope="module")
def bad(server: Server, tiny: TinySet) -> Server:
    """Give the server with bad files beside the good ones."""
    add_bad_files(server.base / "models", tiny)
    sources = server.base / "input"
    graphs.write_tone(sources / "blip.wav", seconds=0.3)
    graphs.write_tone(sources / "silence.wav", seconds=0.6, volume=0)
    sounds.write_nan(sources / "nan.wav")
    return server


def put(kind: str, **inputs: Any) -> Change:
    """Set inputs of a node."""
    return lambda graph: graphs.node(graph, kind)["inputs"].update(inputs)


def add_mask(graph: graphs.Graph, value: float, *, speaker: int = 0) -> None:
    """Give a speaker a mask of one value everywhere."""
    graph[f"mask{speaker}"] = {
        "class_type": "SolidMask",
        "inputs": {"value": value, "width": 768, "height": 512},
    }
    inputs = graphs.node(graph, "MTK_Speaker", speaker)["inputs"]
    inputs.update(mask=[f"mask{speaker}", 0], left=0, top=0, right=0, bottom=0)


BAD: dict[str, tuple[str, Change, list[str]]] = {
    "t2v base": (
        "MTK_LoadWan",
        put("MTK_LoadWan", base="t2v.safetensors"),
        ["t2v.safetensors is a Wan2.1 or Wan2.2 text-to-video base", "image-to-video"],
    ),
    "adapter as base": (
        "MTK_LoadWan",
        put("MTK_LoadWan", base="adapter.safetensors"),
        ["adapter.safetensors is a MultiTalk or InfiniteTalk adapter", "as the adapter"],
    ),
    "truncated base": (
        "MTK_LoadWan",
        put("MTK_LoadWan", base="truncated.gguf"),
        ["truncated.gguf"],
    ),
    "pointer as base": (
        "MTK_LoadWan",
        put("MTK_LoadWan", base="pointer.gguf"),
        ["pointer.gguf", "git-lfs"],
    ),
    "page as base": (
        "MTK_LoadWan",
        put("MTK_LoadWan", base="page.gguf"),
        ["page.gguf", "web page"],
    ),
    "lora as adapter": (
        "MTK_LoadAdapter",
        put("MTK_LoadAdapter", adapter="lora_tiny.safetensors"),
        ["lora_tiny.safetensors is a LoRA", "Load MultiTalk Adapter needs"],
    ),
    "adapter of another width": (
        "MTK_LoadAdapter",
        put("MTK_LoadAdapter", adapter="narrow.safetensors"),
        ["narrow.safetensors", "128", "256"],
    ),
    "wav2vec2 of another depth": (
        "MTK_Sampler",
        put("MTK_LoadWav2Vec2", wav2vec2="shallow.safetensors"),
        ["shallow.safetensors gives 11 layers of width 32", "multitalk.safetensors", "12 layers"],
    ),
    "base without adapter": (
        "MTK_Sampler",
        put("MTK_Sampler", model=["1", 0]),
        ["no audio layers", "Load MultiTalk Adapter"],
    ),
    "short voice": (
        "MTK_Speaker",
        put("LoadAudio", audio="blip.wav"),
        ["The voice lasts 0.30 s", "0.4 s"],
    ),
    "nan voice": (
        "MTK_Speaker",
        put("LoadAudio", audio="nan.wav"),
        ["The voice", "NaN"],
    ),
    "flashtalk with the defaults": (
        "MTK_Sampler",
        put("MTK_Sampler", method="flashtalk"),
        ["FlashTalk is distilled to 4 (or 2) steps", "`segment_frames` to 33"],
    ),
    "no negative prompt": (
        "MTK_Sampler",
        lambda graph: graphs.node(graph, "MTK_Sampler")["inputs"].pop("negative"),
        ["negative"],
    ),
    "odd segment": (
        "MTK_Sampler",
        put("MTK_Sampler", segment_frames=30),
        ["`segment_frames` is 30", "multiple of 4, plus 1"],
    ),
    "mask and box": (
        "MTK_Speaker",
        lambda graph: (add_mask(graph, 1.0), put("MTK_Speaker", right=9, bottom=9)(graph)),
        ["a mask and a box"],
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_bad_input_fails_on_its_node_with_the_fix(bad: Server, name: str) -> None:
    kind, change, parts = BAD[name]
    graph = graphs.short(seed=1)
    change(graph)
    error = failure(bad.run(graph))
    assert error["node_type"] == kind
    for part in parts:
        assert part in error["exception_message"]
    assert "\n" not in error["exception_message"].strip()


@pytest.mark.parametrize("kind", ["MTK_PreviewSpeakers", "MTK_Sampler"])
def test_empty_mask_names_the_speaker(bad: Server, kind: str) -> None:
    graph = graphs.load("two_speakers")
    if kind == "MTK_Sampler":
        graph = graphs.without(graph, "MTK_PreviewSpeakers")
    add_mask(graph, 0.0, speaker=1)
    graphs.node(graph, "MTK_Speaker", 0)["inputs"].update(left=0, top=0, right=300, bottom=512)
    error = failure(bad.run(graph))
    assert error["node_type"] == kind
    assert "peaker 2" in error["exception_message"]


def test_overlapping_masks_warn_with_the_percentage(bad: Server) -> None:
    graph = graphs.load("two_speakers")
    for speaker in range(2):
        graphs.node(graph, "LoadAudio", speaker)["inputs"]["audio"] = "short.wav"
    for speaker, box in enumerate(((0, 0, 400, 512), (300, 0, 768, 512))):
        sides = dict(zip(("left", "top", "right", "bottom"), box, strict=True))
        graphs.node(graph, "MTK_Speaker", speaker)["inputs"].update(sides)
    assert bad.run(graph)["status"]["status_str"] == "success"
    assert "25 %" in bad.log or "25%" in bad.log or "25.0" in bad.log


def test_settings_without_effect_are_said(bad: Server) -> None:
    graph = graphs.short(seed=4)
    graphs.node(graph, "CLIPTextEncode")["inputs"]["text"] = "a person talks " * 300
    add_mask(graph, 1.0)
    assert bad.run(graph)["status"]["status_str"] == "success"
    assert "the model reads 512" in bad.log
    assert "The only speaker's mask or box is ignored" in bad.log


def test_silence_works(bad: Server) -> None:
    graph = graphs.short(seed=2)
    graphs.node(graph, "LoadAudio")["inputs"]["audio"] = "silence.wav"
    assert bad.run(graph)["status"]["status_str"] == "success"


@pytest.mark.parametrize("channels", ["RGBA", "L"])
def test_picture_with_alpha_or_one_channel_works(bad: Server, channels: str) -> None:
    from PIL import Image

    Image.new(channels, (70, 70)).save(bad.base / "input" / f"{channels}.png")
    graph = graphs.short(seed=3)
    graphs.node(graph, "LoadImage")["inputs"]["image"] = f"{channels}.png"
    assert bad.run(graph)["status"]["status_str"] == "success"


def rejection(server: Server, graph: graphs.Graph, kind: str) -> dict[str, Any]:
    """Give the one error ComfyUI rejects a graph with, on the node of a type."""
    status, answer = server.post("/prompt", {"prompt": graph})
    assert status == 400
    found = [e for e in answer["node_errors"].values() if e["class_type"] == kind]
    ((error,),) = [entry["errors"] for entry in found]
    return dict(error)


def test_missing_file_says_what_to_get_and_where_to_put_it(bad: Server) -> None:
    graph = graphs.short()
    put("MTK_LoadWan", base="gone.gguf")(graph)
    error = rejection(bad, graph, "MTK_LoadWan")
    assert error["type"] == "custom_validation_failed"
    for part in (
        "'gone.gguf' is not there",
        "wan2.1-i2v-14b-480p-Q4_K_M.gguf",
        "city96/Wan2.1-I2V-14B-480P-gguf",
        str(bad.base / "models" / "diffusion_models"),
    ):
        assert part in error["details"]


def test_path_outside_the_lists_is_refused(bad: Server) -> None:
    graph = graphs.short()
    put("MTK_LoadWan", base="../../input/short.wav")(graph)
    assert rejection(bad, graph, "MTK_LoadWan")["type"] == "custom_validation_failed"


def test_lists_offer_weights_only_and_leave_comfyuis_alone(bad: Server) -> None:
    folder = bad.base / "models" / "diffusion_models"
    for name in ("pickle.pt", "more.sft"):
        (folder / name).write_bytes(b"")
    extra = bad.base / "elsewhere" / "deep" / "extra.gguf"
    extra.parent.mkdir(parents=True)
    extra.write_bytes(b"")
    nodes = bad.get("/object_info")
    ours = nodes["MTK_LoadWan"]["input"]["required"]["base"]
    offered = ours[1]["options"] if isinstance(ours[1], dict) and "options" in ours[1] else ours[0]
    assert "wan2.1-i2v-14b-480p-Q4_K_M.gguf" in offered
    assert "more.sft" in offered
    assert "deep/extra.gguf" in offered  # of extra_model_paths, in a folder of its own
    assert "pickle.pt" not in offered
    theirs = nodes["UNETLoader"]["input"]["required"]["unet_name"]
    listed = str(theirs)
    assert "pickle.pt" in listed
    assert ".gguf" not in listed
