"""Models in several files."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from comfyui_multitalk.wan_gguf_loader.errors import GGUFError
from comfyui_multitalk.wan_gguf_loader.files import open_weights
from comfyui_multitalk.wan_gguf_loader.shards import shard_paths

TENSORS = {"a": torch.ones(2), "b": torch.zeros(3), "c": torch.full((1,), 7.0)}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    names = [f"model-{n:05}-of-00003.safetensors" for n in (1, 2, 3)]
    for name, (key, tensor) in zip(names, TENSORS.items(), strict=True):
        save_file({key: tensor}, tmp_path / name)
    index = {"weight_map": dict(zip(TENSORS, names, strict=True))}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    return tmp_path


@pytest.mark.parametrize(
    "name",
    [
        ".",
        "model.safetensors.index.json",
        "model-00001-of-00003.safetensors",
        "model-00003-of-00003.safetensors",
    ],
)
def test_any_way_to_name_a_set_opens_all_of_it(name: str, folder: Path) -> None:
    file = open_weights(folder / name)
    assert {n: file.dequantize(n).tolist() for n in file.tensors} == {
        n: tensor.tolist() for n, tensor in TENSORS.items()
    }


def test_index_of_a_diffusers_variant(folder: Path) -> None:
    index = folder / "model.safetensors.index.json"
    named = index.rename(folder / "model.safetensors.index.fp16.json")
    for chosen in (named, folder):
        assert set(open_weights(chosen).tensors) == set(TENSORS)


def test_folder_without_an_index_opens_its_only_model(folder: Path) -> None:
    (folder / "model.safetensors.index.json").unlink()
    (folder / "readme.txt").write_text("x")
    assert set(open_weights(folder).tensors) == set(TENSORS)


def test_missing_shard_is_named(folder: Path) -> None:
    (folder / "model-00002-of-00003.safetensors").unlink()
    with pytest.raises(
        GGUFError, match=r"3 shards .*model-00002-of-00003.safetensors is not beside"
    ):
        open_weights(folder / "model-00001-of-00003.safetensors")
    with pytest.raises(GGUFError, match=r"^model-00002-of-00003.safetensors: .*no such file"):
        open_weights(folder)


def test_folder_with_several_models_is_refused(folder: Path) -> None:
    save_file(TENSORS, folder / "other.safetensors")
    (folder / "model.safetensors.index.json").unlink()
    with pytest.raises(GGUFError, match=r"several models .model-00001.*other.safetensors.. Choose"):
        open_weights(folder)
    (folder / "empty").mkdir()
    with pytest.raises(GGUFError, match=r"holds no model. Choose"):
        open_weights(folder / "empty")


def test_tensor_in_two_shards_is_refused(folder: Path) -> None:
    save_file({"a": TENSORS["a"]}, folder / "model-00002-of-00003.safetensors")
    with pytest.raises(GGUFError, match=r"tensor 'a' is in two shards"):
        open_weights(folder)


@pytest.mark.parametrize(
    "text",
    ["", "[]", "{}", '{"weight_map": {}}', '{"weight_map": {"a": 1}}', "[" * 100_000,
     '{"weight_map": {"a": "../secret.safetensors"}}'],
)  # fmt: skip
def test_damaged_index_is_refused(text: str, tmp_path: Path) -> None:
    index = tmp_path / "m.safetensors.index.json"
    index.write_text(text)
    with pytest.raises(GGUFError, match=r"^m.safetensors.index.json: the index"):
        shard_paths(index)


def test_senseless_number_of_shards_is_refused(tmp_path: Path) -> None:
    with pytest.raises(GGUFError, match=r"speaks of 99999 shards"):
        shard_paths(tmp_path / "m-00001-of-99999.gguf")
