"""Layers whose rows have a scale each: scaled fp8 and int8."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn import functional

from comfyui_multitalk.wan_gguf_loader.changes import Change
from comfyui_multitalk.wan_gguf_loader.dequant import dequantize
from comfyui_multitalk.wan_gguf_loader.errors import GGUFError
from comfyui_multitalk.wan_gguf_loader.ops import GGUFLinear, GGUFOps, Precision
from comfyui_multitalk.wan_gguf_loader.rows import ROW_TYPES, pack_rows

IN, OUT = 64, 24


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def rows(type: str) -> tuple[Tensor, Tensor]:
    """Give packed rows, and the weight that they stand for."""
    values = (normal(OUT, IN) * 20).to(ROW_TYPES[type].dtype)
    scale = normal(OUT, seed=1) * 0.01
    return pack_rows(values, scale), values.float() * scale[:, None]


def layer(type: str, *, precision: Precision = "exact") -> GGUFLinear:
    made = GGUFOps(precision=precision).Linear(IN, OUT)
    made.store_weight(rows(type)[0], type)
    made.bias = normal(OUT, seed=2)
    return made


@pytest.mark.parametrize("type", ROW_TYPES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
def test_layer_multiplies_by_the_scaled_values(type: str, dtype: torch.dtype) -> None:
    x, made = normal(5, IN, seed=3).to(dtype), layer(type)
    expected = functional.linear(x, rows(type)[1].to(dtype), normal(OUT, seed=2).to(dtype))
    assert torch.equal(made(x), expected)
    assert made.weight.nbytes == OUT * (IN + 16)


@pytest.mark.parametrize("type", ROW_TYPES)
def test_lora_is_added_to_the_scaled_values(type: str) -> None:
    made, up, down = layer(type), normal(OUT, 2, seed=4), normal(2, IN, seed=5)
    made.change_weight(Change(name="", kind="LoRA", factors=(up, down)), 0.5)
    expected = rows(type)[1] + 0.5 * up @ down
    torch.testing.assert_close(made.dequantized_weight(torch.float32), expected)


@pytest.mark.parametrize("type", ROW_TYPES)
def test_int8_product_takes_the_scaled_values(type: str) -> None:
    x = normal(1, 1024, IN, seed=3).to(torch.bfloat16)
    exact, rounded = layer(type)(x).float(), layer(type, precision="int8")(x).float()
    assert not torch.equal(exact, rounded)
    assert (exact - rounded).norm() < 0.03 * exact.norm()


@pytest.mark.parametrize("type", ROW_TYPES)
def test_state_dict_round_trips_through_safetensors(type: str, tmp_path: Path) -> None:
    save_file(layer(type).state_dict(), tmp_path / "saved.safetensors")
    fresh = GGUFOps().Linear(IN, OUT)
    assert fresh.load_state_dict(load_file(tmp_path / "saved.safetensors")) == ([], [])
    x = normal(5, IN, seed=3)
    assert fresh.weight_type == type
    assert torch.equal(fresh(x), layer(type)(x))


def test_rows_of_another_length_are_refused() -> None:
    packed = rows("I8_ROWS")[0]
    with pytest.raises(GGUFError, match=r"need uint8 bytes of shape \(24, 81\)"):
        dequantize(packed, "I8_ROWS", (OUT, IN + 1))
    with pytest.raises(GGUFError, match=r"needs the shape \(24, 80\)"):
        GGUFOps().Linear(IN, OUT).store_weight(packed[:, :-1], "I8_ROWS")
