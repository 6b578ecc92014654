"""Every kind of LoRA against its arithmetic in float64, and the scale that its file asks for."""

from __future__ import annotations

import itertools
import json
import math
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from comfyui_multitalk.tests.support.lora_kinds import RANK, SAMPLES, Sample, drawn
from comfyui_multitalk.tools.quantize import quantize
from comfyui_multitalk.wan_gguf_loader.changes import LowRank
from comfyui_multitalk.wan_gguf_loader.errors import GGUFError
from comfyui_multitalk.wan_gguf_loader.files import open_weights
from comfyui_multitalk.wan_gguf_loader.lora import Lora, apply_lora, read_lora
from comfyui_multitalk.wan_gguf_loader.lora_layer import kept_bytes
from comfyui_multitalk.wan_gguf_loader.ops import GGUFLinear, GGUFOps

OUT, IN = 512, 256
KEYS = {"Q4_K": torch.uint8, "BF16": torch.bfloat16, "F32": torch.float32}


class Model(nn.Module):
    """A square and a wide layer, in blocks as the transformer has them, and a convolution."""

    def __init__(self, type: str = "F32") -> None:
        super().__init__()
        self.blocks = nn.ModuleList([nn.Module()])
        for index, (name, out) in enumerate((("q", IN), ("k", OUT))):
            layer = GGUFOps().Linear(IN, out)
            weight = drawn(out, IN, seed=40 + index)
            packed = quantize(weight, type) if type == "Q4_K" else weight.to(KEYS[type])
            layer.store_weight(packed, type)
            self.blocks[0].add_module(name, layer)
        self.patch_embedding = nn.Conv3d(8, IN, (1, 2, 2)).requires_grad_(False)

    def weight(self, name: str) -> Tensor:
        layer = self.get_submodule(f"blocks.0.{name}")
        assert isinstance(layer, GGUFLinear)
        return layer.dequantized_weight(torch.float32)


def read(
    model: nn.Module, path: Path, tensors: dict[str, Tensor], metadata: dict[str, str] | None = None
) -> Lora:
    save_file({name: t.contiguous() for name, t in tensors.items()}, path, metadata)
    return read_lora(open_weights(path), model)


def distance(ours: Tensor, theirs: Tensor) -> float:
    return float((ours.double() - theirs).norm() / theirs.norm())


@pytest.mark.parametrize("type", KEYS)
@pytest.mark.parametrize("name", SAMPLES)
def test_lora_of_every_kind_equals_its_formula(name: str, type: str, tmp_path: Path) -> None:
    model, sample = Model(type), SAMPLES[name]
    stored = {key: value.clone() for key, value in model.state_dict().items()}
    expected = {layer: sample.expected(model.weight(layer), strength=0.7) for layer in "qk"}
    tensors = sample.file("blocks.0.q", IN, IN) | sample.file("blocks.0.k", OUT, IN)
    lora = read(model, tmp_path / "lora.safetensors", tensors)
    apply_lora(model, lora, 0.7)
    for layer, wanted in expected.items():
        assert distance(model.weight(layer), wanted) < 1e-6
    assert all(torch.equal(stored[key], value) for key, value in model.state_dict().items())
    assert lora.num_layers == 2


@pytest.mark.parametrize("pair", [*itertools.permutations(["lora", "dora_of_rows", "loha"], 2)])
def test_loras_of_two_kinds_act_one_after_the_other(pair: tuple[str, str], tmp_path: Path) -> None:
    model = Model("Q4_K")
    expected = model.weight("k").double()
    for name, strength in zip(pair, (0.7, -0.4), strict=True):
        expected = SAMPLES[name].expected(expected, strength=strength)
        tensors = SAMPLES[name].file("blocks.0.k", OUT, IN)
        apply_lora(model, read(model, tmp_path / f"{name}.safetensors", tensors), strength)
    assert distance(model.weight("k"), expected) < 1e-6


@pytest.mark.parametrize("scale", ["scale_weight", "weight_scale", None])
@pytest.mark.parametrize("ending", ["lora_{}.weight", "lora_{}.default.weight"])
def test_factors_in_fp8_are_decoded_with_their_scales(
    ending: str, scale: str | None, tmp_path: Path
) -> None:
    model, tensors = Model("Q4_K"), {}
    expected = model.weight("q").double()
    product = 1.0
    for letter, shape in (("A", (RANK, IN)), ("B", (IN, RANK))):
        key = f"diffusion_model.blocks.0.q.{ending.format(letter)}"
        tensors[key] = drawn(*shape, seed=len(tensors)).to(torch.float8_e4m3fn)
        if scale is not None:
            size = torch.tensor(0.25 if letter == "A" else 3.0)
            tensors[f"{key.removesuffix('weight')}{scale}"] = size
            product *= float(size)
    down, up = (t.double() for t in tensors.values() if t.ndim == 2)
    lora = read(model, tmp_path / "lora.safetensors", tensors)
    apply_lora(model, lora, 0.7)
    assert distance(model.weight("q"), expected + 0.7 * product * up @ down) < 1e-6
    assert lora.left_out == ()


def test_bytes_that_factors_take_are_counted_from_the_header(tmp_path: Path) -> None:
    up, down = PEFT.tensors(IN, IN).values()
    for dtype in (torch.float32, torch.bfloat16, torch.float8_e4m3fn):
        path = tmp_path / f"{dtype}.safetensors"
        stem = "blocks.0.q"
        tensors = {f"{stem}.lora_B.weight": up.to(dtype), f"{stem}.lora_A.weight": down.to(dtype)}
        (change,) = read(Model(), path, tensors).changes
        counted = sum(kept_bytes(info) for info in open_weights(path).tensors.values())
        assert counted == sum(factor.nbytes for factor in change.factors)


def test_scale_that_no_tensor_has_is_an_error(tmp_path: Path) -> None:
    tensors = SAMPLES["peft"].file("blocks.0.q", IN, IN)
    tensors["blocks.0.q.lora_C.scale_weight"] = torch.ones(1)
    with pytest.raises(GGUFError, match=r"blocks\.0\.q\.lora_C\.scale_weight"):
        read(Model(), tmp_path / "lora.safetensors", tensors)


def test_changes_move_with_their_layer_and_are_no_part_of_the_state_dict(tmp_path: Path) -> None:
    model = Model()
    keys = list(model.state_dict())
    tensors = SAMPLES["loha_with_dora"].file("blocks.0.k", OUT, IN)
    apply_lora(model, read(model, tmp_path / "lora.safetensors", tensors), 1.0)
    assert list(model.state_dict()) == keys
    before = model.weight("k")
    model.to("meta")
    devices = {buffer.device.type for buffer in model.buffers()}
    assert devices == {"meta"}
    assert torch.isfinite(before).all()


def test_low_rank_changes_of_adjacent_files_are_one_pair(tmp_path: Path) -> None:
    model = Model()
    for index, name in enumerate(("lora", "peft", "loha", "peft", "lora")):
        tensors = SAMPLES[name].file("blocks.0.q", IN, IN)
        apply_lora(model, read(model, tmp_path / f"{index}.safetensors", tensors), 1.0)
    layer = model.get_submodule("blocks.0.q")
    assert isinstance(layer, GGUFLinear)
    assert layer.changes is not None
    assert [isinstance(change, LowRank) for change in layer.changes] == [True, False, True]


def expanded(core: Tensor, out: Tensor, columns: Tensor) -> Tensor:
    """Expand a Tucker core to a convolution's weight."""
    return torch.einsum("ijxyz,io,jn->onxyz", core, out, columns)


def change_of_the_convolution(tensors: dict[str, Tensor], path: Path) -> Tensor:
    model = Model()
    model.patch_embedding.weight.zero_()  # no rounding against other numbers
    file = {f"patch_embedding.{name}": tensor for name, tensor in tensors.items()}
    apply_lora(model, read(model, path / "lora.safetensors", file), 0.5)
    return model.patch_embedding.weight


def test_tucker_cores_of_loha_are_expanded(tmp_path: Path) -> None:
    first, second = (
        (drawn(RANK, 3, 1, 2, 2, seed=s), drawn(RANK, IN, seed=s + 1), drawn(3, 8, seed=s + 2))
        for s in (1, 4)
    )
    tensors = {"alpha": torch.tensor(6.0)}
    for number, (core, a, b) in enumerate((first, second), start=1):
        tensors |= {f"hada_t{number}": core}
        tensors |= {f"hada_w{number}_a": a, f"hada_w{number}_b": b}
    added = change_of_the_convolution(tensors, tmp_path)
    assert distance(added, (0.5 * 6 / 3 * expanded(*first) * expanded(*second)).double()) < 1e-5


def test_tucker_core_of_lokr_is_expanded(tmp_path: Path) -> None:
    first, core = drawn(4, 2, seed=3), drawn(RANK, 3, 1, 2, 2, seed=1)
    a, b = drawn(RANK, IN // 4, seed=4), drawn(3, 4, seed=5)
    tensors = {"lokr_w1": first, "lokr_t2": core, "lokr_w2_a": a, "lokr_w2_b": b}
    added = change_of_the_convolution(tensors | {"alpha": torch.tensor(6.0)}, tmp_path)
    product = torch.einsum("ab,onxyz->aobnxyz", first, expanded(core, a, b)).reshape(added.shape)
    assert distance(added, (0.5 * 6 / 3 * product).double()) < 1e-5


@pytest.mark.parametrize(
    "tensors",
    [
        {"lora_A.weight": drawn(RANK, 64, seed=1), "lora_B.weight": drawn(IN, RANK, seed=2)},
        {
            "lora_down.weight": drawn(RANK, 16, 1, 2, 2, seed=1),
            "lora_up.weight": drawn(IN, RANK, 1, 1, 1, seed=2),
            "alpha": torch.tensor(1.0),
        },
        {"diff": drawn(IN, 16, 1, 2, 2, seed=1)},
    ],
    ids=["matrix", "convolution", "difference"],
)
def test_patch_embedding_of_text_to_video_is_left_out(
    tensors: dict[str, Tensor], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    file = {f"patch_embedding.{name}": tensor for name, tensor in tensors.items()}
    both = (
        file
        | SAMPLES["lora"].file("blocks.0.q", IN, IN)
        | {"patch_embedding.diff_b": torch.ones(IN)}
    )
    lora = read(Model(), tmp_path / "lora.safetensors", both)
    assert [change.name for change in lora.changes] == ["blocks.0.q.weight", "patch_embedding.bias"]
    assert set(lora.left_out) == set(file)
    (warning,) = [record.getMessage() for record in caplog.records]
    assert f"{len(file)} of the {len(both)} tensors" in warning


PEFT = SAMPLES["peft"]
PATTERN = {"blocks.0.k": 2.0}
RS = {"use_rslora": True, "lora_alpha": 8}
SETTINGS: dict[str, tuple[dict[str, str], float, float]] = {
    "nothing": ({}, 1, 1),
    "other_tools": ({"config": "{", "note": "[1]", "training": '{"rank": 2}'}, 1, 1),
    "diffusers": (
        {"lora_adapter_metadata": json.dumps({"transformer.lora_alpha": 8, "transformer.r": 4})},
        *(2, 2),
    ),
    "diffusers_rs": (
        {"lora_adapter_metadata": json.dumps({f"transformer.{k}": v for k, v in RS.items()})},
        *(4, 4),
    ),
    "peft": ({"adapter_config": json.dumps({**RS, "alpha_pattern": PATTERN})}, 4, 1),
    "pattern_of_the_end": ({"lora_config": json.dumps({"alpha_pattern": {"k": 2}})}, 1, 0.5),
    "single_values": ({"use_rslora": "True", "lora_alpha": "3"}, 1.5, 1.5),
    "not_rs": ({"use_rslora": "false", "lora_alpha": "3"}, 0.75, 0.75),
    "rs_without_alpha": ({"use_rslora": "true"}, 2, 2),
}


@pytest.mark.parametrize(("metadata", "q", "k"), SETTINGS.values(), ids=SETTINGS)
def test_scale_is_what_the_metadata_says(
    metadata: dict[str, str], q: float, k: float, tmp_path: Path
) -> None:
    model = Model()
    tensors = PEFT.file("blocks.0.q", IN, IN) | PEFT.file("blocks.0.k", OUT, IN)
    lora = read(model, tmp_path / "lora.safetensors", tensors, metadata)
    assert {change.name: change.scale for change in lora.changes} == {
        "blocks.0.q.weight": q,
        "blocks.0.k.weight": k,
    }


def test_alpha_of_a_layer_goes_before_the_metadata(tmp_path: Path) -> None:
    tensors = SAMPLES["lora"].file("blocks.0.q", IN, IN)
    metadata = {"lora_adapter_metadata": json.dumps(RS)}
    (change,) = read(Model(), tmp_path / "lora.safetensors", tensors, metadata).changes
    assert change.scale == 6 / math.sqrt(RANK)


def test_settings_beside_pefts_own_file_are_read(tmp_path: Path) -> None:
    (tmp_path / "adapter_config.json").write_text(json.dumps(RS))
    tensors = PEFT.file("base_model.model.blocks.0.q", IN, IN)
    for name, scale in (("adapter_model.safetensors", 4.0), ("other.safetensors", 1.0)):
        (change,) = read(Model(), tmp_path / name, tensors).changes
        assert change.scale == scale


@pytest.mark.parametrize(
    ("metadata", "message"),
    [
        ({"lora_alpha": "much"}, "'much' as lora_alpha, which cannot be read"),
        ({"lora_alpha": "inf"}, "'inf' as lora_alpha"),
        ({"use_rslora": "perhaps"}, "'perhaps' as use_rslora"),
        ({"peft": '{"alpha_pattern": [1]}'}, r"'\[1\]' as alpha_pattern"),
        ({"peft": '{"alpha_pattern": {"q": "x"}}'}, "'x' as alpha_pattern"),
        ({"peft": '{"alpha_pattern": {".*q": 2}}'}, r"names '\.\*q', which is no layer"),
    ],
)
def test_settings_that_cannot_be_read_are_named(
    metadata: dict[str, str], message: str, tmp_path: Path
) -> None:
    tensors = PEFT.file("blocks.0.q", IN, IN)
    with pytest.raises(GGUFError, match=message):
        read(Model(), tmp_path / "lora.safetensors", tensors, metadata)


BROKEN: dict[str, tuple[Sample, dict[str, Tensor | None], str]] = {
    "loha_half": (SAMPLES["loha"], {".hada_w2_b": None}, "hada_w2_b is missing"),
    "lokr_half": (SAMPLES["lokr"], {".lokr_w2": None}, "lokr_w2 is missing"),
    "loha_misfit": (SAMPLES["loha"], {".hada_w2_b": drawn(3, 8, seed=1)}, "unknown"),
    "lokr_misfit": (SAMPLES["lokr"], {".lokr_w1": drawn(3, 8, seed=1)}, r"shape \(96, 512\)"),
    "lokr_pair": (SAMPLES["lokr_in_factors"], {".lokr_w1_a": drawn(8, 3, seed=1)}, "unknown"),
    "magnitude": (SAMPLES["lora"], {".dora_scale": torch.ones(1, 3)}, r"has the shape \[1, 3\]"),
    "two_kinds": (SAMPLES["lora"], {".lokr_w1": drawn(8, 4, seed=1)}, "lokr_w2 is missing"),
    "two_whole_kinds": (SAMPLES["lora"], SAMPLES["lokr"].tensors(IN, IN), "another kind of LoRA"),
    "alone": (Sample(lambda *_: {}, lambda w, _: w), {".dora_scale": torch.ones(IN)}, "needs both"),
}


@pytest.mark.parametrize(("sample", "change", "message"), BROKEN.values(), ids=BROKEN)
def test_damaged_layer_is_named(
    sample: Sample, change: dict[str, Tensor | None], message: str, tmp_path: Path
) -> None:
    tensors = sample.tensors(IN, IN) | change
    file = {f"blocks.0.q{end}": tensor for end, tensor in tensors.items() if tensor is not None}
    with pytest.raises(GGUFError, match=message) as error:
        read(Model(), tmp_path / "lora.safetensors", file)
    assert "blocks.0.q" in str(error.value)


def test_report_counts_kinds_and_names_what_is_left_out(tmp_path: Path) -> None:
    tensors = SAMPLES["lora"].file("blocks.0.q", IN, IN)
    tensors |= SAMPLES["dora_of_rows"].file("blocks.0.k", OUT, IN)
    tensors |= {"blocks.0.k.diff_b": torch.ones(OUT), "lora_te_x.alpha": torch.ones(1)}
    lora = read(Model(), tmp_path / "lora.safetensors", tensors)
    assert lora.report(0.5) == (
        "lora.safetensors: 2 layers at strength 0.5 (DoRA of rank 4: 1, LoRA of rank 4: 1, "
        "difference: 1); tensors of other models, left out: 1 (lora_te_x.alpha)"
    )
