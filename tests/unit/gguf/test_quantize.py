"""The quantisers write what gguf's dequantisation reads, with errors no larger than llama.cpp's."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType
from gguf.quants import dequantize
from gguf.quants import quantize as gguf_quantize
from torch import Tensor

from comfyui_multitalk.tools.quantize import quantize


def decode(packed: Tensor, type: str) -> Tensor:
    return torch.from_numpy(dequantize(packed.numpy(), GGMLQuantizationType[type]))


def weights(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)) * 0.05


def relative_error(weight: Tensor, type: str) -> float:
    difference = decode(quantize(weight, type), type) - weight
    return float(difference.norm() / weight.norm())


@pytest.mark.parametrize("type", ["Q8_0", "Q5_0", "Q5_1", "Q4_0", "Q4_1"])
def test_quantize_block_of_32_equals_gguf(type: str) -> None:
    weight = weights(7, 96)
    expected = gguf_quantize(weight.numpy(), GGMLQuantizationType[type])
    assert np.array_equal(quantize(weight, type).numpy(), expected)


@pytest.mark.parametrize(
    ("type", "row_bytes", "largest"), [("Q4_K", 2 * 144, 0.073), ("Q6_K", 2 * 210, 0.0178)]
)
def test_quantize_k_quant_error_is_small(type: str, row_bytes: int, largest: float) -> None:
    weight = weights(64, 512)
    assert quantize(weight, type).shape == (64, row_bytes)
    assert relative_error(weight, type) < largest


@pytest.mark.parametrize("type", ["Q4_K", "Q6_K"])
@pytest.mark.parametrize(
    "weight",
    [
        pytest.param(torch.zeros(2, 256), id="zeros"),
        pytest.param(torch.full((2, 256), 0.3), id="constant"),
        pytest.param(torch.full((2, 256), -0.3), id="negative"),
        pytest.param(torch.eye(4, 512) * 5, id="one_value_in_a_block"),
        pytest.param(torch.rand(4, 512) + 1, id="all_positive"),
        pytest.param(-torch.rand(4, 512) - 1, id="all_negative"),
        pytest.param(weights(4, 512) * 1e5, id="large"),
    ],
)
def test_quantize_k_quant_unusual_blocks_stay_close(type: str, weight: Tensor) -> None:
    limit = {"Q4_K": 0.09, "Q6_K": 0.02}[type]
    difference = decode(quantize(weight, type), type) - weight
    assert float(difference.norm()) <= limit * float(weight.norm())


@pytest.mark.parametrize("type", ["Q4_K", "Q6_K"])
def test_quantize_k_quant_blocks_are_independent(type: str) -> None:
    weight = weights(600, 512)  # more super-blocks than one chunk of the search
    whole = quantize(weight, type)
    assert torch.equal(whole[-1:], quantize(weight[-1:], type))
    assert torch.equal(whole[:1], quantize(weight[:1], type))


def test_quantize_leaves_its_input_alone() -> None:
    weight = weights(4, 512)
    before = weight.clone()
    for type in ("Q8_0", "Q4_K", "Q6_K"):
        quantize(weight, type)
    assert torch.equal(weight, before)


@pytest.mark.parametrize(
    ("weight", "type", "message"),
    [
        (torch.zeros(2, 255), "Q4_K", "multiple of 256"),
        (torch.zeros(512), "Q4_K", "matrix"),
        (torch.full((2, 256), torch.nan), "Q4_K", "NaN"),
        (torch.full((2, 256), -torch.inf), "Q8_0", "infinity"),
        (torch.full((2, 256), 1e6), "Q6_K", "float16"),
        (torch.zeros(2, 256), "IQ4_XS", "cannot be written"),
    ],
    ids=["columns", "vector", "nan", "infinity", "large", "type"],
)
def test_quantize_bad_input_says_what_is_needed(weight: Tensor, type: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        quantize(weight, type)
