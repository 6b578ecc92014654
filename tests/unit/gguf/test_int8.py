"""Linear layers in int8: rounding by rows, what stays exact, what is shared, and the kernels."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from comfyui_multitalk.wan_gguf_loader.changes import Change
from comfyui_multitalk.wan_gguf_loader.int8 import (
    LEAST_ROWS,
    Int8Feed,
    Int8Rows,
    int8_linear,
    multiplies_int8,
    quantize_rows,
)
from comfyui_multitalk.wan_gguf_loader.ops import GGUFLinear, GGUFOps

ROWS, IN, OUT = LEAST_ROWS, 256, 48
on_a_card = torch.cuda.is_available()


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def layers() -> tuple[GGUFLinear, GGUFLinear]:
    made = []
    for precision in ("exact", "int8"):
        layer = GGUFOps(precision=precision).Linear(IN, OUT)
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


def test_sequences_of_a_batch_are_rounded_as_each_alone() -> None:
    """Three prompts are no long sequence: a step's passes give what each would give."""
    exact, fast = layers()
    x = normal(3, ROWS // 2, IN).bfloat16()
    assert torch.equal(fast(x), exact(x))
    long = normal(3, ROWS, IN).bfloat16()
    assert torch.equal(fast(long), torch.cat([fast(one[None]) for one in long]))


def test_parts_of_rows_are_all_rounded_and_multiplied() -> None:
    x = normal(2, 2 * 2048 + 5, 16).bfloat16()
    weight = quantize_rows(normal(8, 16, seed=1))
    product = int8_linear(quantize_rows(x), weight, None)
    assert distance(plain(quantize_rows(x)), x) < 0.012
    assert distance(product, plain(quantize_rows(x)) @ plain(weight).T) < 0.004


def test_layer_whose_outputs_no_card_multiplies_stays_exact() -> None:
    fast = GGUFOps(precision="int8").Linear(IN, 20)
    fast.store_weight(normal(20, IN), "F32")
    x = normal(ROWS, IN).bfloat16()
    expected = functional.linear(x, fast.weight.bfloat16(), torch.zeros(20).bfloat16())
    assert torch.equal(fast(x), expected)


@pytest.mark.parametrize("change", ["lora", "difference"])
def test_changed_weight_is_rounded_with_its_change(change: str) -> None:
    exact, fast = layers()
    made = Change(name="", kind="LoRA", factors=(normal(OUT, 4), normal(4, IN)), scale=0.5)
    if change == "difference":
        made = Change(name="", kind="difference", factors=(normal(OUT, IN, seed=5),), scale=0.5)
    before = fast(quantize_rows(normal(ROWS, IN).bfloat16()))
    for layer in (exact, fast):
        layer.change_weight(made)
    x = normal(ROWS, IN).bfloat16()
    assert distance(fast(quantize_rows(x)), exact(x)) < 0.02
    assert distance(before, exact(x)) > 0.1


@pytest.mark.parametrize("device", ["mps", "xpu"])
def test_devices_without_int8_products_are_known(device: str) -> None:
    assert not multiplies_int8(torch.device(device))
    assert multiplies_int8(torch.device("cpu"))


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
    with GGUFOps.cache_decoded(fast):
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


@pytest.mark.gpu
@pytest.mark.skipif(not on_a_card, reason="needs a CUDA device")
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=["float16", "bfloat16"])
@pytest.mark.parametrize(
    ("rows", "inputs", "outputs"),
    [(ROWS, IN, OUT), (32760, 192, 512), (5000, 1536, 8960), (2000, 5120, 256)],
    ids=["small", "many tiles", "wide", "deep"],
)
def test_int8_on_a_card_is_that_of_the_cpu(
    dtype: torch.dtype, rows: int, inputs: int, outputs: int
) -> None:
    """On Hopper the product is a kernel of its own, but for the small one."""
    x, weight = normal(rows, inputs).to(dtype), normal(outputs, inputs, seed=1).to(dtype)
    bias, gain, shift = normal(outputs, seed=2), normal(1, 1, inputs, seed=3), normal(1, 1, inputs)
    for has_bias in (True, False):
        made: list[list[Tensor]] = []
        for device in ("cpu", "cuda"):
            here, ready = x.to(device), quantize_rows(weight.to(device))
            given = [
                quantize_rows(here),
                Int8Feed.gelu(here),
                Int8Feed.normalize(
                    here[None], gain=gain.to(device), shift=shift.to(device), eps=1e-6
                ),
            ]
            added = bias.to(device) if has_bias else None
            made.append([int8_linear(one, ready, added).cpu() for one in given])
        for expected, result in zip(*made, strict=True):
            assert distance(result, expected) < 0.003


@pytest.mark.gpu
@pytest.mark.skipif(not on_a_card, reason="needs a CUDA device")
def test_product_on_a_card_is_exact_in_the_integers() -> None:
    """The same integers give the same sums: only the last rounding may fall either way."""
    x = quantize_rows(normal(4000, 1536).bfloat16().cuda())
    weight = quantize_rows(normal(768, 1536, seed=1).bfloat16().cuda())
    sums = torch._int_mm(x.values, weight.values.t()).float()
    expected = (sums * x.scale * weight.scale.t()).bfloat16()
    result = int8_linear(x, weight, None)
    assert (result != expected).float().mean() < 1e-4
    torch.testing.assert_close(result, expected, rtol=0.01, atol=0)
