"""Linear layers in fp8: rounding by rows, what stays exact, and Triton's rounding."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from comfyui_multitalk.wan_gguf_loader.fp8 import fp8_linear, quantize_rows
from comfyui_multitalk.wan_gguf_loader.ops import gguf_ops, hold

ROWS, IN, OUT = 1024, 64, 48


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def layers() -> tuple[torch.nn.Module, torch.nn.Module]:
    made = []
    for precision in ("exact", "fp8"):
        layer = gguf_ops(precision=precision).Linear(IN, OUT)
        layer.store_weight(normal(OUT, IN, seed=1).bfloat16(), "BF16")
        layer.bias = normal(OUT, seed=2)
        made.append(layer)
    return made[0], made[1]


def distance(a: Tensor, b: Tensor) -> float:
    return float((a.float() - b.float()).norm() / b.float().norm())


def test_rows_of_any_size_are_rounded_alike() -> None:
    x = normal(5, IN) * torch.tensor([1e-6, 1e-2, 1.0, 1e3, 0.0]).unsqueeze(1)
    rounded = quantize_rows(x)
    assert distance(rounded.values.float() * rounded.scale, x) < 0.03
    assert torch.equal(rounded.values[4].float(), torch.zeros(IN))
    assert rounded.values.float().abs().amax() == 448


def test_fp8_layer_is_off_by_the_rounding_of_both_factors() -> None:
    exact, fast = layers()
    x = normal(ROWS, IN).bfloat16()
    assert 0.01 < distance(fast(x), exact(x)) < 0.05
    expected = fp8_linear(
        quantize_rows(x), quantize_rows(exact.weight), exact.bias.bfloat16(), dtype=x.dtype
    )
    assert torch.equal(fast(x), expected)


@pytest.mark.parametrize(
    ("rows", "dtype"), [(ROWS - 1, torch.bfloat16), (ROWS, torch.float32)], ids=["few", "float32"]
)
def test_fp8_layer_stays_exact_where_it_gains_nothing(rows: int, dtype: torch.dtype) -> None:
    exact, fast = layers()
    x = normal(rows, IN).to(dtype)
    assert torch.equal(fast(x), exact(x))


def test_held_fp8_weight_is_taken_only_by_inputs_that_want_it() -> None:
    exact, fast = layers()
    many, few = normal(ROWS, IN).bfloat16(), normal(8, IN).bfloat16()
    expected = fast(many)
    with hold(fast):
        assert torch.equal(fast(many), expected)
        assert torch.equal(fast(few), exact(few))
        assert torch.equal(fast(many), expected)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_fp8_on_a_card_is_that_of_the_cpu() -> None:
    x, weight, bias = (normal(ROWS, IN), normal(OUT, IN, seed=1), normal(OUT, seed=2))
    expected = fp8_linear(quantize_rows(x), quantize_rows(weight), bias, dtype=torch.float32)
    result = fp8_linear(
        quantize_rows(x.cuda()),
        quantize_rows(weight.cuda()),
        bias.cuda().bfloat16(),
        dtype=torch.bfloat16,
    )
    assert distance(result.cpu(), expected) < 0.01
