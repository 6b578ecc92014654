"""GGUF layers: exact against gguf's decoding, bytes that nothing touches, options per load."""

from __future__ import annotations

import copy
import hashlib
from pathlib import Path

import numpy as np
import pytest
import torch
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType
from gguf.quants import dequantize
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional

from comfyui_multitalk.tools.quantize import quantize
from comfyui_multitalk.wan_gguf_loader.changes import Change
from comfyui_multitalk.wan_gguf_loader.errors import GGUFError
from comfyui_multitalk.wan_gguf_loader.ops import GGUFLinear, GGUFOps

IN, OUT = 512, 24
WRITTEN = ("Q8_0", "Q5_0", "Q5_1", "Q4_0", "Q4_1", "Q4_K", "Q6_K")
READ = ("Q2_K", "Q3_K", "Q5_K", "IQ4_NL", "IQ4_XS")
PLAIN = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)) * 0.1


def packed(type: str, *, seed: int = 0) -> Tensor:
    if type in WRITTEN:
        return quantize(normal(OUT, IN, seed=seed), type)
    block, block_bytes = GGML_QUANT_SIZES[GGMLQuantizationType[type]]
    random = np.random.default_rng(seed).integers(0, 256, (OUT, IN // block * block_bytes))
    return torch.from_numpy((random & 0xBF).astype(np.uint8))  # every float16 below 2


def by_gguf(weight: Tensor, type: str) -> Tensor:
    return torch.from_numpy(dequantize(weight.numpy(), GGMLQuantizationType[type]))


def layer(type: str, *, bias: bool = True) -> GGUFLinear:
    made = GGUFOps().Linear(IN, OUT, bias=bias)
    if type in PLAIN:
        made.store_weight(normal(OUT, IN).to(PLAIN[type]), type)
    else:
        made.store_weight(packed(type), type)
    if made.bias is not None:
        made.bias = normal(OUT, seed=7)
    return made


def digest(tensor: Tensor) -> str:
    return hashlib.sha256(tensor.numpy().tobytes()).hexdigest()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("type", [*WRITTEN, *READ])
def test_gguf_linear_matches_dequantised_linear(type: str, dtype: torch.dtype) -> None:
    linear = layer(type)
    x = normal(3, 5, IN, seed=1).to(dtype)
    weight = by_gguf(linear.weight, type).to(dtype)
    assert linear.bias is not None
    expected = functional.linear(x, weight, linear.bias.to(dtype))
    result = linear(x)
    assert result.dtype == dtype
    assert torch.equal(result, expected)


@pytest.mark.parametrize("type", PLAIN)
def test_gguf_linear_plain_weight_is_cast_to_the_input(type: str) -> None:
    linear = layer(type)
    x = normal(5, IN, seed=1)
    assert torch.equal(linear(x), functional.linear(x, linear.weight.float(), linear.bias))
    assert linear.weight_type == type
    assert linear.weight.dtype == PLAIN[type]


def test_gguf_linear_without_bias_has_none() -> None:
    linear = layer("Q8_0", bias=False)
    x = normal(5, IN, seed=1)
    assert torch.equal(linear(x), functional.linear(x, by_gguf(linear.weight, "Q8_0")))
    assert set(linear.state_dict()) == {"weight", "weight_type"}


@pytest.mark.parametrize(
    "cast",
    [
        pytest.param(lambda m: m.to(torch.bfloat16), id="to_bf16"),
        pytest.param(lambda m: m.half(), id="half"),
        pytest.param(lambda m: m.float(), id="float"),
        pytest.param(lambda m: m.double(), id="double"),
    ],
)
def test_gguf_linear_casts_never_touch_packed_bytes(cast: object) -> None:
    linear = layer("Q4_K")
    before = digest(linear.weight)
    assert callable(cast)
    cast(nn.Sequential(linear))
    assert linear.weight.dtype == torch.uint8
    assert digest(linear.weight) == before
    assert linear.weight_type == "Q4_K"


def test_gguf_linear_forward_changes_nothing_it_was_given() -> None:
    linear = layer("Q6_K")
    x = normal(5, IN, seed=1)
    before, given = digest(linear.weight), x.clone()
    first = linear(x)
    assert torch.equal(linear(x), first)
    assert digest(linear.weight) == before
    assert torch.equal(x, given)


def test_gguf_linear_works_where_its_input_is() -> None:
    linear = layer("Q4_K")
    linear.change_weight(Change(name="", kind="LoRA", factors=(normal(OUT, 2), normal(2, IN))))
    result = linear(normal(5, IN).to("meta"))  # another device that every machine has
    assert (result.device.type, result.shape) == ("meta", (5, OUT))
    assert linear.weight.device.type == "cpu"


def test_gguf_linear_deepcopy_is_equal_and_separate() -> None:
    model = nn.Sequential(layer("Q4_K"), nn.Linear(OUT, 2)).requires_grad_(False)
    twin = copy.deepcopy(model)
    x = normal(5, IN, seed=1)
    expected = model(x)
    assert torch.equal(twin(x), expected)
    twin[0].weight.zero_()
    assert torch.equal(model(x), expected)
    assert not torch.equal(twin(x), expected)


@pytest.mark.parametrize("assign", [False, True], ids=["copy", "assign"])
@pytest.mark.parametrize("type", ["Q4_K", "Q6_K", "Q8_0", "F32", "BF16"])
def test_gguf_linear_state_dict_round_trips_through_safetensors(
    type: str, assign: bool, tmp_path: Path
) -> None:
    model = nn.Sequential(layer(type), nn.LayerNorm(OUT))
    save_file(model.state_dict(), tmp_path / "saved.safetensors")
    saved = load_file(tmp_path / "saved.safetensors")
    device = "meta" if assign else "cpu"
    fresh = nn.Sequential(GGUFOps().Linear(IN, OUT, device=device), nn.LayerNorm(OUT))
    assert fresh.load_state_dict(saved, assign=assign) == ([], [])
    assert fresh[0].weight_type == type
    assert torch.equal(fresh[0].weight, model[0].weight)
    x = normal(5, IN, seed=1)
    assert torch.equal(fresh(x), model(x))


def test_gguf_linear_load_state_dict_replaces_another_type() -> None:
    linear = layer("Q4_K")
    for type in ("Q6_K", "F16", "Q4_K"):
        linear.load_state_dict(layer(type).state_dict())
        assert linear.weight_type == type
        assert torch.equal(linear.weight, layer(type).weight)


def test_gguf_linear_load_state_dict_wrong_shape_names_the_weight() -> None:
    state = layer("Q4_K").state_dict()
    state["weight"] = state["weight"][:, :-144]
    with pytest.raises(RuntimeError, match="size mismatch for weight"):
        layer("Q4_K").load_state_dict(state)


@pytest.mark.parametrize("type_id", [0, 9999], ids=["plain", "unknown"])
def test_gguf_linear_load_state_dict_wrong_type_names_it(type_id: int) -> None:
    state = layer("Q4_K").state_dict()
    state["weight_type"] = torch.tensor(type_id)
    with pytest.raises(RuntimeError, match=f"weight_type is {type_id}"):
        layer("Q4_K").load_state_dict(state)


def test_gguf_linear_load_state_dict_missing_weight_is_reported() -> None:
    missing, unexpected = layer("Q4_K").load_state_dict(
        {"bias": torch.zeros(OUT), "other": torch.zeros(1)}, strict=False
    )
    assert (missing, unexpected) == (["weight"], ["other"])


@pytest.mark.parametrize(
    ("weight", "type", "message"),
    [
        (torch.zeros(OUT, IN, dtype=torch.uint8), "Q4_K", r"needs the shape \(24, 288\)"),
        (torch.zeros(OUT, 288), "Q4_K", "float32"),
        (torch.zeros(IN, OUT), "F32", r"needs the shape \(24, 512\)"),
        (torch.zeros(OUT, IN, dtype=torch.uint8), "F32", "uint8"),
    ],
    ids=["row_bytes", "not_bytes", "transposed", "bytes_as_plain"],
)
def test_gguf_linear_weight_misfit_says_what_is_needed(
    weight: Tensor, type: str, message: str
) -> None:
    with pytest.raises(GGUFError, match=message):
        GGUFOps().Linear(IN, OUT).store_weight(weight, type)


def test_gguf_linear_repr_names_the_storage_type() -> None:
    assert "in_features=512, out_features=24, bias=True, weight_type=Q4_K" in repr(layer("Q4_K"))


def test_held_layers_decode_once_and_forget_afterwards() -> None:
    linear = layer("Q4_K")
    x = normal(5, IN, seed=1)
    expected = linear(x)
    stored = linear.weight
    with GGUFOps.cache_decoded(nn.Sequential(linear)):
        assert torch.equal(linear(x), expected)
        linear.weight = torch.zeros_like(stored)  # what is held no longer looks at the bytes
        assert torch.equal(linear(x), expected)
    assert not torch.equal(linear(x), expected)
