"""Every kind of tensor of every file, in a wrong rank or type: our error or a loaded model."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from comfyui_multitalk.multitalk_core.errors import WeightsError
from comfyui_multitalk.standalone.encoders import load_image_encoder, load_text_encoder
from comfyui_multitalk.standalone.request import Lora, ModelFiles
from comfyui_multitalk.standalone.vae import load_vae, vae_width
from comfyui_multitalk.standalone.weights import OpenFiles
from comfyui_multitalk.tools.gguf_writer import Entry, write_gguf
from comfyui_multitalk.wan_gguf_loader.errors import GGUFError
from comfyui_multitalk.wan_gguf_loader.files import open_weights
from comfyui_multitalk.wan_gguf_loader.types import PLAIN_DTYPES

if TYPE_CHECKING:
    from comfyui_multitalk.dev.make_tiny import TinySet

CPU = torch.device("cpu")
MUTATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "rank_0": lambda tensor: torch.zeros((), dtype=tensor.dtype),
    "flat": lambda tensor: tensor.flatten(),
    "integers": lambda tensor: tensor.to(torch.int32),
}


def _load_text(files: OpenFiles) -> object:
    return load_text_encoder(files.text_encoder, device=CPU, dtype=torch.float32)


def _load_vae(files: OpenFiles) -> object:
    return vae_width(files.vae), load_vae(files.vae, device=CPU, dtype=torch.float32)


def _load_image(files: OpenFiles) -> object:
    return load_image_encoder(files.clip_vision, device=CPU, dtype=torch.float32)


LOADS: dict[str, Callable[[OpenFiles], object]] = {
    "base": lambda files: files.load_transformer(torch.float32),
    "adapter": lambda files: files.load_transformer(torch.float32),
    "loras": lambda files: files.load_transformer(torch.float32),
    "wav2vec2": lambda files: files.load_wav2vec2(),
    "text_encoder": _load_text,
    "clip_vision": _load_image,
    "vae": _load_vae,
}


def _model_files(tiny: TinySet) -> ModelFiles:
    return ModelFiles(
        base=tiny.base,
        adapter=tiny.adapter,
        loras=(),
        wav2vec2=tiny.wav2vec2,
        vae=tiny.vae,
        text_encoder=tiny.text_encoder,
        clip_vision=tiny.clip_vision,
    )


def _kinds(names: list[str]) -> list[str]:
    """Give one name of each kind: all layers of one kind are read alike."""
    first: dict[str, str] = {}
    for name in names:
        first.setdefault(re.sub(r"\d+", "#", name), name)
    return list(first.values())


def _layer(name: str) -> str:
    """Give what a message must contain; some names change between the file and the model."""
    if name == "spiece_model":
        return "tokenizer"
    return name.removeprefix("wav2vec2.").rpartition(".")[0]


def _source(files: ModelFiles, part: str, tiny: TinySet) -> Path:
    return tiny.lora if part == "loras" else getattr(files, part)


@pytest.mark.parametrize("mutation", MUTATIONS)
@pytest.mark.parametrize("part", LOADS)
def test_damaged_tensor_is_an_error_of_ours(
    tmp_path: Path, tiny: TinySet, part: str, mutation: str
) -> None:
    files = _model_files(tiny)
    with open_weights(_source(files, part, tiny)) as file:
        heads = file.num_heads
        tensors = {
            name: file.read(name)
            if info.type in PLAIN_DTYPES
            else file.dequantize(name, torch.bfloat16)
            for name, info in file.tensors.items()
        }
    path = tmp_path / "damaged.safetensors"
    changed = replace(files, **{part: (Lora(path, 1.0),) if part == "loras" else path})
    refused = 0
    for name in _kinds(list(tensors)):
        damaged = MUTATIONS[mutation](tensors[name]).contiguous()
        if (damaged.shape, damaged.dtype) == (tensors[name].shape, tensors[name].dtype):
            continue
        save_file(
            tensors | {name: damaged},
            path,
            metadata=None if heads is None else {"num_heads": str(heads)},
        )
        try:
            LOADS[part](OpenFiles(changed))
        except (WeightsError, GGUFError) as error:
            assert path.name in str(error), name
            if mutation in ("rank_0", "integers"):
                assert _layer(name) in str(error), str(error)
            refused += 1
    assert refused


@pytest.mark.parametrize("name", ["blocks.0.self_attn.q.weight", "patch_embedding.bias"])
def test_gguf_tensor_of_rank_0_is_named(tmp_path: Path, tiny: TinySet, name: str) -> None:
    path = tmp_path / "rank0.gguf"
    with open_weights(tiny.base) as file:
        entries = [
            Entry(name, (), "F32") if info.name == name else Entry(info.name, info.shape, info.type)
            for info in file.tensors.values()
        ]
        payloads = [
            torch.zeros(()) if entry.name == name else file.read(entry.name) for entry in entries
        ]
        metadata = {
            "general.architecture": "wan",
            "wan.attention.head_count": file.num_heads or 1,
        }
        write_gguf(path, entries, payloads, metadata=metadata)
    with pytest.raises((WeightsError, GGUFError), match=re.escape(name)) as error:
        OpenFiles(replace(_model_files(tiny), base=path)).load_transformer(torch.float32)
    assert str(error.value).startswith("rank0.gguf")
