"""What `multitalk inspect` says of files with the published names and shapes, made tiny."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from comfyui_multitalk.multitalk_core.config import AudioConfig, ModelConfig
from comfyui_multitalk.multitalk_core.errors import InputError, WeightsError
from comfyui_multitalk.multitalk_core.model.dit import MultiTalkModel
from comfyui_multitalk.standalone.inspection import inspect_file
from comfyui_multitalk.tests.support.tiny import TinySet
from comfyui_multitalk.wan_gguf_loader.errors import GGUFError
from comfyui_multitalk.wan_gguf_loader.ops import GGUFOps

CONFIG = ModelConfig(
    dim=128,
    ffn_dim=64,
    num_heads=1,
    num_layers=2,
    text_dim=16,
    image_dim=16,
    freq_dim=16,
    audio=AudioConfig(channels=2, hidden_dim=8, num_tokens=2, token_dim=8),
)


def shapes_of_model() -> dict[str, tuple[int, ...]]:
    state = MultiTalkModel(CONFIG, ops=GGUFOps(), device="meta").state_dict()
    return {name: tuple(tensor.shape) for name, tensor in state.items()}


MERGED = shapes_of_model()
AUDIO = {n: s for n, s in MERGED.items() if n.startswith("audio_proj") or "audio_" in n}
AUDIO |= {n: s for n, s in MERGED.items() if ".norm_x." in n}
BASE = {n: s for n, s in MERGED.items() if n not in AUDIO}
WAV2VEC2 = {
    "feature_extractor.conv_layers.0.conv.weight": (8, 1, 10),
    "feature_projection.projection.weight": (16, 8),
}


def stored(
    folder: Path,
    shapes: Mapping[str, tuple[int, ...]],
    *,
    metadata: dict[str, str] | None = None,
) -> Path:
    path = folder / "file.safetensors"
    tensors = {n: torch.zeros(s, dtype=torch.bfloat16) for n, s in shapes.items()}
    save_file(tensors, path, metadata)
    return path


def without(shapes: Mapping[str, tuple[int, ...]], *names: str) -> dict[str, tuple[int, ...]]:
    return {name: shape for name, shape in shapes.items() if name not in names}


def wav2vec2(layers: Iterable[int]) -> dict[str, tuple[int, ...]]:
    return WAV2VEC2 | {f"encoder.layers.{i}.attention.q_proj.weight": (16, 16) for i in layers}


@pytest.mark.parametrize(
    ("shapes", "option", "node", "methods"),
    [
        (BASE, "--base", "Load Wan2.1 (GGUF)", []),
        (MERGED, "--base", "Load Wan2.1 (GGUF)", ["multitalk", "infinitetalk", "flashtalk"]),
        (AUDIO, "--adapter", "Load MultiTalk Adapter", ["multitalk", "infinitetalk"]),
        (wav2vec2(range(12)), "--wav2vec", "Load Wav2Vec2", []),
    ],
    ids=["base", "merged", "adapter", "wav2vec2"],
)
def test_file_is_told_with_where_it_goes(
    tmp_path: Path,
    shapes: Mapping[str, tuple[int, ...]],
    option: str,
    node: str,
    methods: list[str],
) -> None:
    found = inspect_file(stored(tmp_path, shapes))
    assert (found.option, found.node, list(found.methods)) == (option, node, methods)
    assert f"{option} file.safetensors" in found.lines()
    assert "untellable" in found.lines()


def test_each_methods_settings_are_told(tmp_path: Path) -> None:
    found = inspect_file(stored(tmp_path, MERGED))
    assert found.methods["flashtalk"] == {
        "steps": 4, "shift": 5.0, "text_guidance": 1.0, "audio_guidance": 1.0,
        "segment_frames": 33, "motion_frames": 5,
    }  # fmt: skip
    assert "--method infinitetalk" in found.lines()
    assert "SoulX-FlashTalk or SkyReels-V3-A2V" in found.lines()


def test_memory_is_that_of_the_weights_and_less_when_streamed(tmp_path: Path) -> None:
    third = {n.replace("s.1.", "s.2."): s for n, s in BASE.items() if n.startswith("blocks.1.")}
    found = inspect_file(stored(tmp_path, BASE | third))
    assert found.memory_bytes == found.bytes == 2 * found.parameters
    block = sum(2 * math.prod(shape) for shape in third.values())
    assert found.streamed_bytes == found.bytes - block  # two of the three are on the card


def test_name_in_the_metadata_is_told(tmp_path: Path) -> None:
    path = stored(tmp_path, BASE, metadata={"modelspec.title": "Wan2.1-Fun-V1.1-14B-InP"})
    assert "call it 'Wan2.1-Fun-V1.1-14B-InP'" in inspect_file(path).lines()
    assert inspect_file(stored(tmp_path, BASE)).title is None


@pytest.mark.parametrize(
    ("shapes", "error", "says"),
    [
        (
            without(BASE, "blocks.1.ffn.2.bias"),
            WeightsError,
            r"lacks 1 of the \d+ tensors that are needed of it, such as 'blocks\.1\.ffn\.2\.bias'",
        ),
        (without(AUDIO, "blocks.1.norm_x.weight"), WeightsError, r"'blocks\.1\.norm_x\.weight'"),
        (BASE | {"blocks.0.ffn.0.shift": (64,)}, GGUFError, r"1 tensors of layers .*no known use"),
        (wav2vec2(range(24)), InputError, "24 layers of width 16, but every adapter was made"),
        ({"proj_model.proj.weight": (4, 4)}, WeightsError, "is a FantasyTalking model .*no option"),
    ],
    ids=["base", "adapter", "unread", "wav2vec2-large", "lookalike"],
)
def test_refused_file_is_told_with_the_reason(
    tmp_path: Path,
    shapes: Mapping[str, tuple[int, ...]],
    error: type[Exception],
    says: str,
) -> None:
    with pytest.raises(error, match=says):
        inspect_file(stored(tmp_path, shapes))


def test_nodes_have_these_names(repository: Path, tmp_path: Path) -> None:
    definitions = json.loads((repository / "locales/en/nodeDefs.json").read_text(encoding="utf-8"))
    names = {node["display_name"] for node in definitions.values()}
    for shapes in (BASE, AUDIO, MERGED, wav2vec2(range(12))):
        assert inspect_file(stored(tmp_path, shapes)).node in names


def test_whole_numbers_without_a_scale_are_refused(tmp_path: Path) -> None:
    tensors = {n: torch.zeros(s, dtype=torch.bfloat16) for n, s in BASE.items()}
    tensors["blocks.0.ffn.0.weight"] = tensors["blocks.0.ffn.0.weight"].to(torch.int8)
    save_file(tensors, tmp_path / "base.safetensors")
    with pytest.raises(GGUFError, match=r"'blocks\.0\.ffn\.0\.weight' holds I8 numbers"):
        inspect_file(tmp_path / "base.safetensors")


def test_text_encoder_without_a_tokenizer_is_refused(tmp_path: Path, tiny: TinySet) -> None:
    tensors = load_file(tiny.text_encoder)
    assert inspect_file(tiny.text_encoder).option == "--text-encoder"
    del tensors["spiece_model"]
    save_file(tensors, tmp_path / "umt5.safetensors")
    with pytest.raises(GGUFError, match=r"tokenizer.*spiece\.model"):
        inspect_file(tmp_path / "umt5.safetensors")
