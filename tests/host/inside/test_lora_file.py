"""Load LoRA (Wan2.1) changes a MODEL as the command changes its model, in every kind of file."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import comfy.model_management
import comfy.sd
import comfy.utils
import folder_paths
import pytest
import torch
from safetensors.torch import load_file, save_file

from comfyui_multitalk.dev.tiny import wan
from comfyui_multitalk.multitalk_core.errors import InputError, WeightsError
from comfyui_multitalk.multitalk_core.model.dit import MultiTalkModel
from comfyui_multitalk.nodes.host import folders, model
from comfyui_multitalk.nodes.host.lora_file import load_lora
from comfyui_multitalk.nodes.loaders import LoadLora
from comfyui_multitalk.tests.host.inside.scene import ADAPTER, BASE, CPU, SEED, Scene, distance
from comfyui_multitalk.tests.support.lora_kinds import SAMPLES, drawn
from comfyui_multitalk.tools.convert import convert
from comfyui_multitalk.wan_gguf_loader.files import open_weights
from comfyui_multitalk.wan_gguf_loader.load import load_weights
from comfyui_multitalk.wan_gguf_loader.lora import apply_lora, read_lora
from comfyui_multitalk.wan_gguf_loader.ops import GGUFLinear, GGUFOps

SQUARE, WIDE = "blocks.0.self_attn.q", "blocks.1.ffn.0"
PLAIN = ("blocks.0.self_attn.q.bias", "blocks.0.cross_attn.norm_k.weight", "blocks.0.modulation")
ROUNDING = {"Q8_0": 1e-6, "bf16": 2e-3}
"""A packed weight is decoded and changed alike; ComfyUI rounds a changed bf16 weight to bf16."""
MISREAD_BY_COMFYUI = ("dora_of_rows", "dora_of_peft")
"""It divides by the norms of the unchanged rows, and does not know PEFT's key."""


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Write one base as bf16 and Q8_0."""
    folder = tmp_path_factory.mktemp("bases")
    weights, _ = wan.base_and_adapter(seed=SEED)
    files = {"bf16": folder / "base.safetensors", "Q8_0": folder / "base.gguf"}
    heads = {"num_heads": str(wan.CONFIG.num_heads)}
    save_file({k: v.bfloat16().contiguous() for k, v in weights.items()}, files["bf16"], heads)
    convert(files["bf16"], files["Q8_0"], type="Q8_0", num_heads=wan.CONFIG.num_heads)
    return files


@pytest.fixture(scope="module")
def models(bases: dict[str, Path]) -> dict[str, Any]:
    """Load both as MODEL."""
    return {type: model.load_base(path) for type, path in bases.items()}


@pytest.fixture
def files(bases: dict[str, Path], tmp_path: Path) -> Iterator[dict[str, Path]]:
    """Write a file of each kind for two layers and, with it, changes of plain tensors."""
    with open_weights(bases["bf16"]) as base:
        shapes = base.shapes
    paths = {}
    for name, sample in SAMPLES.items():
        tensors = {}
        for layer in (SQUARE, WIDE):
            tensors |= sample.file(f"diffusion_model.{layer}", *shapes[f"{layer}.weight"])
        for tensor, ending in zip(PLAIN, (".diff_b", ".diff", ".diff_m"), strict=True):
            stem = tensor.rpartition(".")[0]
            tensors[f"diffusion_model.{stem}{ending}"] = drawn(*shapes[tensor], seed=2)
        paths[name] = tmp_path / f"{name}.safetensors"
        save_file({key: value.contiguous() for key, value in tensors.items()}, paths[name])
    yield paths
    comfy.model_management.unload_all_models()


def of_command(base: Path, *loras: tuple[Path, float]) -> dict[str, torch.Tensor]:
    """Give the weights that the command computes with."""
    net = MultiTalkModel(dataclasses.replace(wan.CONFIG, audio=None), ops=GGUFOps(), device="meta")
    with open_weights(base) as file:
        load_weights(net, [file], dtype=torch.float32)
    for path, strength in loras:
        apply_lora(net, read_lora(open_weights(path), net), strength)
    weights = {name: comfy.utils.get_attr(net, name) for name in PLAIN}
    for path in (SQUARE, WIDE):
        layer = net.get_submodule(path)
        assert isinstance(layer, GGUFLinear)
        weights[f"{path}.weight"] = layer.dequantized_weight(torch.float32)
    return weights


def of_comfyui(patcher: Any) -> dict[str, torch.Tensor]:
    """Give the weights that ComfyUI computes with."""
    comfy.model_management.load_models_gpu([patcher])
    net = patcher.model.diffusion_model
    weights = {name: comfy.utils.get_attr(net, name).float() for name in PLAIN}
    for path in (SQUARE, WIDE):
        layer = net.get_submodule(path)
        nothing = layer(torch.zeros(1, layer.in_features))
        weights[f"{path}.weight"] = (layer(torch.eye(layer.in_features)) - nothing).T
    return weights


@pytest.mark.parametrize("type", ROUNDING)
@pytest.mark.parametrize("name", SAMPLES)
def test_node_equals_the_command(
    bases: dict[str, Path], models: dict[str, Any], files: dict[str, Path], name: str, type: str
) -> None:
    before = of_command(bases[type])
    wanted = of_command(bases[type], (files[name], 0.7))
    changed, report = load_lora(models[type], files[name], strength=0.7)
    ours = of_comfyui(changed)
    for tensor, weight in wanted.items():
        assert distance(weight, before[tensor]) > 0.01, tensor
        assert distance(ours[tensor], weight) < ROUNDING[type], tensor
    assert report.startswith(f"{name}.safetensors: 4 layers at strength 0.7 (")


@pytest.mark.parametrize("type", ROUNDING)
@pytest.mark.parametrize("pair", [("lora", "loha"), ("dora_of_rows", "peft"), ("lokr", "lora")])
def test_two_nodes_in_a_row_equal_two_files_of_the_command(
    bases: dict[str, Path],
    models: dict[str, Any],
    files: dict[str, Path],
    pair: tuple[str, str],
    type: str,
) -> None:
    first, second = (files[name] for name in pair)
    wanted = of_command(bases[type], (first, 0.7), (second, -0.4))
    one, _ = load_lora(models[type], first, strength=0.7)
    ours = of_comfyui(load_lora(one, second, strength=-0.4)[0])
    for tensor, weight in wanted.items():
        assert distance(ours[tensor], weight) < ROUNDING[type], tensor


def test_changes_of_one_weight_in_one_file_all_arrive(
    bases: dict[str, Path], models: dict[str, Any], tmp_path: Path
) -> None:
    tensors = SAMPLES["lora"].file(SQUARE, wan.CONFIG.dim, wan.CONFIG.dim)
    tensors[f"{SQUARE}.diff"] = drawn(wan.CONFIG.dim, wan.CONFIG.dim, seed=3)
    save_file(tensors, tmp_path / "both.safetensors")
    wanted = of_command(bases["Q8_0"], (tmp_path / "both.safetensors", 1.0))
    changed, _ = load_lora(models["Q8_0"], tmp_path / "both.safetensors", strength=1.0)
    assert distance(of_comfyui(changed)[f"{SQUARE}.weight"], wanted[f"{SQUARE}.weight"]) < 1e-6


@pytest.mark.parametrize("type", ROUNDING)
def test_scaled_fp8_equals_the_command_and_its_decoded_values(
    bases: dict[str, Path], models: dict[str, Any], tmp_path: Path, type: str
) -> None:
    scaled, decoded = {}, {}
    for letter, shape, scale in (("A", (4, 256), 0.25), ("B", (256, 4), 3.0)):
        key = f"diffusion_model.{SQUARE}.lora_{letter}"
        scaled[f"{key}.weight"] = drawn(*shape, seed=len(scaled)).to(torch.float8_e4m3fn)
        scaled[f"{key}.scale_weight"] = torch.tensor(scale)
        decoded[f"{key}.weight"] = scale * scaled[f"{key}.weight"].float()
    save_file(scaled, tmp_path / "scaled.safetensors")
    save_file(decoded, tmp_path / "decoded.safetensors")
    name = f"{SQUARE}.weight"
    wanted = of_command(bases[type], (tmp_path / "scaled.safetensors", 1.0))[name]
    for file in ("scaled", "decoded"):
        changed, _ = load_lora(models[type], tmp_path / f"{file}.safetensors", strength=1.0)
        assert distance(of_comfyui(changed)[name], wanted) < ROUNDING[type]
    assert distance(wanted, of_command(bases[type])[name]) > 0.01


@pytest.mark.parametrize("name", [n for n in SAMPLES if n not in MISREAD_BY_COMFYUI])
def test_node_equals_comfyuis_own_where_that_reads_the_file(
    models: dict[str, Any], files: dict[str, Path], name: str
) -> None:
    theirs, _ = comfy.sd.load_lora_for_models(
        models["Q8_0"], None, load_file(files[name]), 0.7, 0.0
    )
    expected = of_comfyui(theirs)
    ours = of_comfyui(load_lora(models["Q8_0"], files[name], strength=0.7)[0])
    for layer in (SQUARE, WIDE):
        assert distance(ours[f"{layer}.weight"], expected[f"{layer}.weight"]) < 1e-6


@pytest.mark.parametrize("name", ["lora", "dora_of_rows", "lokr"])
def test_changes_act_the_same_when_memory_is_low_and_leave_no_bit(
    scene: Scene, bases: dict[str, Path], files: dict[str, Path], name: str
) -> None:
    base = model.load_base(BASE)
    plain = scene.forward_loaded(base)
    changed, _ = load_lora(base, files[name], strength=1.0)
    comfy.model_management.unload_all_models()
    changed.partially_load(CPU, extra_memory=600_000)
    assert changed.model.model_lowvram  # else it was loaded whole
    partly = scene.forward(changed)
    changed.detach()
    whole = scene.forward_loaded(changed.clone())
    assert distance(whole, plain) > 0.01
    assert distance(partly, whole) < 1e-6
    assert changed.model_size() > base.model_size()
    comfy.model_management.unload_all_models()
    assert torch.equal(scene.forward_loaded(base), plain)


def test_changes_come_along_to_the_adapters_model(scene: Scene, files: dict[str, Path]) -> None:
    base = model.load_base(BASE)
    first, _ = load_lora(base, files["loha_with_dora"], strength=1.0)
    after = scene.sample(model.load_adapter(first, ADAPTER))
    on_top, _ = load_lora(model.load_adapter(base, ADAPTER), files["loha_with_dora"], strength=1.0)
    assert torch.equal(after, scene.sample(on_top))
    assert distance(after, scene.sample(base)) > 0.01


def test_strength_zero_changes_nothing(models: dict[str, Any], files: dict[str, Path]) -> None:
    changed, report = load_lora(models["Q8_0"], files["lora"], strength=0.0)
    assert changed.patches == models["Q8_0"].patches == {}
    assert "at strength 0 " in report


def test_foreign_model_and_file_are_refused(
    theirs: Any, models: dict[str, Any], files: dict[str, Path]
) -> None:
    with pytest.raises(InputError, match=r"Load the base with Load Wan2\.1 \(GGUF\)"):
        load_lora(theirs, files["lora"], strength=1.0)
    with pytest.raises(WeightsError, match=r"Load LoRA \(Wan2\.1\) needs a LoRA"):
        load_lora(models["Q8_0"], ADAPTER, strength=1.0)


def test_node_lists_the_files_of_loras_or_says_where_to_get_one(
    models: dict[str, Any], files: dict[str, Path]
) -> None:
    (hint,) = folders.LORA.choices()
    assert hint.startswith("no file: get lightx2v_I2V_14B")
    assert "There is no LoRA of Wan2.1" in str(LoadLora.validate_inputs(lora=hint))
    target = Path(folder_paths.get_folder_paths("loras")[0]) / "lora.safetensors"
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_bytes(files["lora"].read_bytes())
    try:
        assert folders.LORA.choices() == ["lora.safetensors"]
        changed, report = LoadLora.execute(models["Q8_0"], "lora.safetensors", 1.0).args
    finally:
        target.unlink()
    assert changed.patches
    assert report == "lora.safetensors: 4 layers at strength 1 (difference: 3, LoRA of rank 4: 2)"
