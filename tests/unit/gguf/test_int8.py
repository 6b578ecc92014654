"""Linear layers in int8: rounding by rows, what stays exact, what is shared, and the kernels."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from comfyui_multitalk.wan_gguf_loader.int8 import (
    LEAST_ROWS,
    Int8Feed,
    Int8Rows,
    int8_linear,
    quantize_rows,
)
from comfyui_multitalk.wan_gguf_loader.ops import GGUFLinear, gguf_ops, hold

ROWS, IN, OUT = LEAST_ROWS, 256, 48
kernels = pytest.importorskip("comfyui_multitalk.wan_gguf_loader.kernels.int8")
on_a_card = torch.cuda.is_available()


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def layers() -> tuple[GGUFLinear, GGUFLinear]:
    made = []
    for precision in ("exact", "int8"):
        layer = gguf_ops(precision=precision).Linear(IN, OUT)
        layer.store_weight(normal(OUT, IN, seed=1).bfloat16(), "BF16")
        layer.bias = normal(OUT, seed=2)
        made.append(layer)
    return made[0], made[1]


def distance(a: Tensor, b: Tensor) -> float:
    return float((a.float() - b.float()).norm() / b.float().norm())


def plain(rows: Int8Rows) -> Tensor:
    """Give the numbers that rounded rows stand for."""
    return rows.values.float() * rows.scale


def test_rows_of_any_size_are_rounded_alike() -> None:
    x = normal(5, IN) * torch.tensor([1e-6, 1e-2, 1.0, 1e3, 0.0]).unsqueeze(1)
    rounded = quantize_rows(x)
    for row in range(4):
        assert distance(plain(rounded)[row], x[row]) < 0.012
    assert torch.equal(rounded.values[4], torch.zeros(IN, dtype=torch.int8))
    assert rounded.values[:4].abs().amax(dim=1).tolist() == [127] * 4
    assert plain(rounded)[:4].isfinite().all()


def test_int8_layer_is_off_by_the_rounding_of_both_factors() -> None:
    exact, fast = layers()
    x = normal(2, ROWS, IN).bfloat16()
    assert 0.005 < distance(fast(x), exact(x)) < 0.02
    assert fast(x).shape == (2, ROWS, OUT)
    expected = functional.linear(
        plain(quantize_rows(x)), plain(quantize_rows(exact.weight)), exact.bias
    )
    assert distance(fast(x), expected) < 0.004  # of bfloat16's last bit


@pytest.mark.parametrize(
    ("rows", "dtype"), [(ROWS - 1, torch.bfloat16), (ROWS, torch.float32)], ids=["few", "float32"]
)
def test_int8_layer_stays_exact_where_it_gains_nothing(rows: int, dtype: torch.dtype) -> None:
    exact, fast = layers()
    x = normal(rows, IN).to(dtype)
    assert torch.equal(fast(x), exact(x))
    assert not Int8Feed.takes(x)


def test_held_int8_weight_is_taken_only_by_inputs_that_want_it() -> None:
    exact, fast = layers()
    many, few = normal(ROWS, IN).bfloat16(), normal(8, IN).bfloat16()
    expected = fast(many)
    with hold(fast):
        assert torch.equal(fast(many), expected)
        assert torch.equal(fast(few), exact(few))
        assert torch.equal(fast(many), expected)


def test_rounded_input_gives_what_the_tensor_gives() -> None:
    _, fast = layers()
    x = normal(2, ROWS, IN).bfloat16()
    assert torch.equal(fast(quantize_rows(x)), fast(x))


def test_feed_rounds_the_norm_and_the_gelu_of_core() -> None:
    x, gain, shift = normal(2, ROWS, IN).bfloat16(), normal(2, 1, IN), normal(2, 1, IN, seed=1)
    normed = functional.layer_norm(x.float(), (IN,), eps=1e-6) * gain + shift
    rounded = Int8Feed.normalize(x, gain=gain, shift=shift, eps=1e-6)
    assert rounded.dtype == x.dtype
    assert distance(plain(rounded), normed) < 0.012
    gelu = functional.gelu(x.float(), approximate="tanh")
    assert distance(plain(Int8Feed.gelu(x)), gelu) < 0.012


Kernel = Callable[..., tuple[Tensor, Tensor]]


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
def test_interpreted_product_is_the_reference(has_bias: bool) -> None:
    """More tiles than programs, and rows, columns and depth that fill no tile."""
    x, weight = quantize_rows(normal(2100, 192)), quantize_rows(normal(264, 192, seed=1))
    bias = normal(264, seed=2) if has_bias else None
    product = kernels.linear(
        x.values, x.scale, weight.values, weight.scale, bias, dtype=torch.float32, num_programs=3
    )
    torch.testing.assert_close(product, int8_linear(x, weight, bias), rtol=1e-5, atol=1e-4)


@pytest.mark.gpu
@pytest.mark.skipif(not on_a_card, reason="needs a CUDA device")
def test_int8_on_a_card_is_that_of_the_cpu() -> None:
    x, weight, bias = normal(ROWS, IN).half(), normal(OUT, IN, seed=1).half(), normal(OUT, seed=2)
    gain, shift = normal(1, 1, IN, seed=3), normal(1, 1, IN, seed=4)
    made: list[list[Tensor]] = []
    for device in ("cpu", "cuda"):
        here = x.to(device)
        rows = [
            quantize_rows(here),
            Int8Feed.gelu(here),
            Int8Feed.normalize(here[None], gain=gain.to(device), shift=shift.to(device), eps=1e-6),
        ]
        ready = quantize_rows(weight.to(device))
        made.append([int8_linear(one, ready, bias.to(device)).cpu() for one in rows])
    for expected, result in zip(*made, strict=True):
        assert distance(result, expected) < 0.003
