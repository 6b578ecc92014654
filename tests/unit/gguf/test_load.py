"""Loading a model from files: what stays packed, what is decoded, and what is refused."""

from __future__ import annotations

import json
import logging
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType, GGUFWriter
from gguf.quants import dequantize
from safetensors.torch import save_file
from torch import Tensor, nn

from comfyui_multitalk.tools.convert import convert
from comfyui_multitalk.tools.quantize import quantize
from comfyui_multitalk.wan_gguf_loader.errors import GGUFError
from comfyui_multitalk.wan_gguf_loader.files import open_weights
from comfyui_multitalk.wan_gguf_loader.load import load_weights
from comfyui_multitalk.wan_gguf_loader.ops import GGUFOps

WIDTH = 256


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)) * 0.1


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.ffn = GGUFOps().Linear(WIDTH, WIDTH, device="meta")
        self.norm3 = nn.LayerNorm(WIDTH, device="meta")
        self.modulation = nn.Parameter(torch.empty(1, 6, WIDTH, device="meta"))


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.patch_embedding = nn.Conv3d(4, WIDTH, (1, 2, 2), device="meta")
        self.head = GGUFOps().Linear(WIDTH, 8, device="meta")
        self.blocks = nn.ModuleList([Block()])


def tensors() -> dict[str, Tensor]:
    expected = Model().state_dict()
    return {name: normal(*t.shape, seed=i) for i, (name, t) in enumerate(expected.items())}


@pytest.fixture
def gguf(tmp_path: Path) -> Path:
    save_file(tensors(), tmp_path / "plain.safetensors")
    convert(tmp_path / "plain.safetensors", tmp_path / "base.gguf", type="Q4_K_M")
    return tmp_path / "base.gguf"


def saved(folder: Path, name: str, content: dict[str, Tensor]) -> Path:
    save_file(content, folder / name)
    return folder / name


def test_load_keeps_matrices_packed_and_decodes_the_rest(gguf: Path) -> None:
    model = Model()
    file = open_weights(gguf)
    load_weights(model, [file])
    ffn = model.blocks[0].get_submodule("ffn")
    assert (ffn.weight_type, model.head.weight_type) == ("Q4_K", "F16")
    assert torch.equal(ffn.weight, file.read("blocks.0.ffn.weight"))
    assert torch.equal(
        ffn.dequantized_weight(torch.float32), file.dequantize("blocks.0.ffn.weight")
    )
    for name, tensor in model.state_dict().items():
        assert tensor.device.type == "cpu"
        if not name.endswith(("ffn.weight", "head.weight", "weight_type")):
            assert tensor.dtype == torch.float32
            assert torch.equal(tensor, tensors()[name])
    assert not any(parameter.requires_grad for parameter in model.parameters())


def test_load_folded_patch_embedding_is_unfolded(tmp_path: Path) -> None:
    plain = saved(tmp_path, "plain.safetensors", tensors())
    convert(plain, tmp_path / "folded.gguf", type="Q8_0", fold_patch_embedding=True)
    model = Model()
    load_weights(model, [open_weights(tmp_path / "folded.gguf")])
    assert torch.equal(model.patch_embedding.weight, tensors()["patch_embedding.weight"])


def test_load_blocks_that_run_across_rows_are_decoded(tmp_path: Path) -> None:
    writer = GGUFWriter(tmp_path / "folded.gguf", "wan")
    writer.add_array("comfy.gguf.orig_shape.weight", [16, 16])
    bytes_of_rows = quantize(normal(8, 32), "Q8_0").numpy()
    writer.add_tensor("weight", bytes_of_rows, raw_dtype=GGMLQuantizationType.Q8_0)
    writer.add_tensor("bias", np.zeros(16, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    layer = GGUFOps().Linear(16, 16, device="meta")
    load_weights(layer, [open_weights(tmp_path / "folded.gguf")])
    expected = dequantize(bytes_of_rows, GGMLQuantizationType.Q8_0)
    assert torch.equal(layer.weight, torch.from_numpy(expected).view(16, 16))


def test_load_model_runs_as_its_decoded_twin(gguf: Path) -> None:
    model = Model()
    file = open_weights(gguf)
    load_weights(model, [file])
    x = normal(3, WIDTH)
    weight, bias = (file.dequantize(f"blocks.0.ffn.{leaf}") for leaf in ("weight", "bias"))
    assert torch.equal(model.blocks[0].get_submodule("ffn")(x), x @ weight.T + bias)


@pytest.mark.parametrize(
    ("stored", "dtype", "kept"),
    [
        (torch.float32, torch.bfloat16, torch.bfloat16),
        (torch.float32, None, torch.float32),
        (torch.float16, torch.bfloat16, torch.float16),
        (torch.float8_e4m3fn, torch.bfloat16, torch.float8_e4m3fn),
    ],
    ids=["rounded", "as_it_is", "same_width", "narrower"],
)
def test_load_plain_linear_weights_are_rounded_only_when_wider(
    stored: torch.dtype, dtype: torch.dtype | None, kept: torch.dtype, tmp_path: Path
) -> None:
    content = {name: tensor.to(stored) for name, tensor in tensors().items()}
    model = Model()
    load_weights(model, [open_weights(saved(tmp_path, "p.safetensors", content))], dtype=dtype)
    head, norm = model.head, model.blocks[0].get_submodule("norm3")
    assert head.weight.dtype == kept
    assert torch.equal(head.weight.float(), content["head.weight"].to(kept).float())
    assert norm.weight.dtype == head.bias.dtype == torch.float32


def test_load_two_files_each_bring_their_part(gguf: Path, tmp_path: Path) -> None:
    base = {n: t for n, t in tensors().items() if not n.startswith("head.")}
    adapter = {n: t.bfloat16() for n, t in tensors().items() if n.startswith("head.")}
    convert(saved(tmp_path, "b.safetensors", base), tmp_path / "b.gguf", type="Q6_K")
    model = Model()
    files = [tmp_path / "b.gguf", saved(tmp_path, "a.safetensors", adapter)]
    load_weights(model, [open_weights(path) for path in files])
    assert model.blocks[0].get_submodule("ffn").weight_type == "Q6_K"
    assert torch.equal(model.head.weight, adapter["head.weight"])


def test_load_missing_tensors_are_counted_and_named(tmp_path: Path) -> None:
    content = tensors()
    del content["blocks.0.ffn.weight"], content["head.bias"]
    file = open_weights(saved(tmp_path, "part.safetensors", content))
    with pytest.raises(GGUFError, match=r"2 of the 9 .*part\.safetensors.*head\.bias"):
        load_weights(Model(), [file])


def test_load_missing_list_is_cut_after_ten(tmp_path: Path) -> None:
    model = nn.ModuleList(GGUFOps().Linear(8, 8, device="meta") for _ in range(8))
    file = open_weights(saved(tmp_path, "other.safetensors", {"0.weight": normal(8, 8)}))
    with pytest.raises(GGUFError, match=r"15 of the 16 .* and 5 more"):
        load_weights(model, [file])


def test_load_tensor_in_two_files_names_both(gguf: Path, tmp_path: Path) -> None:
    again = saved(tmp_path, "again.safetensors", {"head.bias": normal(8)})
    with pytest.raises(GGUFError, match=r"again.safetensors: .*'head\.bias' .* base\.gguf"):
        load_weights(Model(), [open_weights(gguf), open_weights(again)])


@pytest.mark.parametrize("name", ["blocks.0.ffn.weight", "blocks.0.norm3.weight"])
def test_load_other_shape_names_tensor_and_both_shapes(name: str, tmp_path: Path) -> None:
    content = tensors()
    content[name] = normal(*content[name].shape[:-1], 512)
    file = open_weights(saved(tmp_path, "wide.safetensors", content))
    with pytest.raises(GGUFError, match=rf"^wide\.safetensors: .*{name}.*512.*256"):
        load_weights(Model(), [file])


def test_load_tensors_without_a_place_are_logged(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    content = {**tensors(), "audio_proj.norm.weight": normal(8)}
    with caplog.at_level(logging.INFO):
        load_weights(Model(), [open_weights(saved(tmp_path, "more.safetensors", content))])
    assert "1 tensors have no place" in caplog.text
    assert "audio_proj.norm.weight" in caplog.text


@pytest.mark.skipif(sys.platform != "linux", reason="RssAnon is read from Linux's /proc")
def test_load_peak_memory_is_the_packed_bytes(repository: Path, tmp_path: Path) -> None:
    """Two blocks of the 14B shapes; `dev/benchmarks/load_memory.py` measures all forty."""
    (tmp_path / "comfyui_multitalk").symlink_to(repository, target_is_directory=True)
    done = subprocess.run(
        [sys.executable, "-m", "comfyui_multitalk.dev.benchmarks.load_memory", "--blocks", "2"],
        cwd=tmp_path, capture_output=True, text=True, check=True,
    )  # fmt: skip
    report = json.loads(done.stdout)
    assert report["packed_bytes"] > 900e6
    assert report["kept_bytes"] > 0.95 * report["packed_bytes"]
    assert report["peak_over_packed"] <= 1.1


@pytest.mark.parametrize(
    "name",
    [
        "blocks.0.ffn.weight_scaling",
        "blocks.0.ffn.zero.point",
        "blocks.0.norm3.scale",
        "blocks.0.modulation.scale_weight",
        "head.bias.scale",
    ],
)
def test_tensor_of_a_loaded_layer_that_nothing_reads_is_refused(name: str, tmp_path: Path) -> None:
    save_file({**tensors(), name: torch.ones(1)}, tmp_path / "base.safetensors")
    message = rf"^base\.safetensors: 1 tensors of layers .* of no known use: {name}\."
    with pytest.raises(GGUFError, match=message):
        load_weights(Model(), [open_weights(tmp_path / "base.safetensors")])


def test_tensors_of_no_layer_are_left_out_with_one_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    others = {"freqs": torch.ones(1), "blocks.0.other.weight": torch.ones(1)}
    save_file({**tensors(), **others}, tmp_path / "base.safetensors")
    load_weights(Model(), [open_weights(tmp_path / "base.safetensors")])
    (record,) = caplog.records
    assert "2 tensors have no place in this model" in record.message
    assert all(name in record.message for name in others)
