"""Triton's int8 kernels, interpreted, against the plain formulas."""

from __future__ import annotations

import importlib
import sys

import pytest
import torch

from comfyui_multitalk.tests.unit.gguf.test_int8 import normal
from comfyui_multitalk.wan_gguf_loader.int8 import Int8Feed, int8_linear, quantize_rows

kernels = pytest.importorskip("comfyui_multitalk.wan_gguf_loader.kernels.int8")
on_a_card = torch.cuda.is_available()


@pytest.mark.skipif(on_a_card, reason="the kernels are not interpreted where there is a card")
@pytest.mark.parametrize("width", [64, 320])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=["float32", "float16"])
def test_interpreted_rounding_is_the_reference(width: int, dtype: torch.dtype) -> None:
    x = (normal(2, 3, width) * 3).to(dtype)
    x[0, 1] = 0
    each = {"gain": normal(2, 1, width), "shift": normal(2, 1, width, seed=1), "eps": 1e-6}
    whole = {"gain": normal(width), "shift": normal(width, seed=1), "eps": 1e-6}
    pairs = [
        (quantize_rows(x), kernels.quantize_rows(x)),
        (Int8Feed.gelu(x), kernels.gelu_rows(x)),
        (Int8Feed.normalize(x, **each), kernels.normalize_rows(x, **each)),
        (Int8Feed.normalize(x, **whole), kernels.normalize_rows(x, **whole)),
    ]
    for expected, (values, scale) in pairs:
        assert values.shape == x.shape
        torch.testing.assert_close(scale, expected.scale, rtol=1e-5, atol=0)
        assert (values.int() - expected.values.int()).abs().amax() <= 1  # a tie may fall either way
        assert (values != expected.values).float().mean() < 0.002


@pytest.mark.skipif(on_a_card, reason="the kernels are not interpreted where there is a card")
@pytest.mark.parametrize("has_bias", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
def test_interpreted_product_is_the_reference(dtype: torch.dtype, has_bias: bool) -> None:
    """More tiles than programs, and rows, columns and depth that fill no tile."""
    x, weight = quantize_rows(normal(2100, 192).to(dtype)), quantize_rows(normal(264, 192, seed=1))
    bias = normal(264, seed=2) if has_bias else None
    product = kernels.linear(
        x.values, x.scale, weight.values, weight.scale, bias, dtype=dtype, num_programs=3
    )
    closely = {"rtol": 1e-5, "atol": 1e-4} if dtype == torch.float32 else {}
    torch.testing.assert_close(product, int8_linear(x, weight, bias), **closely)


def test_other_kernels_work_where_triton_does_not_know_the_copy_engine(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As Triton 3.3 does not; the module was read before, so it is read anew."""
    name = "comfyui_multitalk.wan_gguf_loader.kernels.int8"
    monkeypatch.setitem(sys.modules, "triton.tools.tensor_descriptor", None)
    monkeypatch.delitem(sys.modules, name)
    old = importlib.import_module(name)
    values, _ = old.quantize_rows(normal(3, 64))
    assert torch.equal(values, quantize_rows(normal(3, 64)).values)
