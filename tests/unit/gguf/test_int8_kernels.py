"""Triton's int8 kernels, interpreted, against the plain formulas."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch

from comfyui_multitalk.tests.unit.gguf.test_int8 import normal
from comfyui_multitalk.wan_gguf_loader.int8 import Int8Feed, knows_gluon, quantize_rows

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


_COMPILE = """
import torch, triton
from triton.backends.compiler import GPUTarget
from triton.experimental.gluon._runtime import GluonASTSource
from comfyui_multitalk.wan_gguf_loader.kernels import int8_product as product

def described(rows, columns, dtype, name):
    return f"tensordesc<{name}[{rows},{columns}],{product.part_layout(rows, columns, dtype)!r}>"

constants = {"PROGRAMS": 132, "STAGES": 3}
kinds = {
    "x": described(64, 128, torch.int8, "i8"),
    "weight": described(256, 128, torch.int8, "i8"),
    "out": described(64, 64, torch.bfloat16, "bf16"),
    **dict.fromkeys(("x_scale", "weight_scale"), "*fp32"), "bias": "*bf16",
    **dict.fromkeys(("num_rows", "num_columns", "depth"), "i32"),
    **dict.fromkeys(constants, "constexpr"),
}
kernel = product._linear
source = GluonASTSource(
    kernel,
    {name: kinds[name] for name in kernel.arg_names},
    {(kernel.arg_names.index(name),): value for name, value in constants.items()},
)
made = triton.compile(source, target=GPUTarget("cuda", 90, 32), options={"num_warps": 4})
print(made.metadata.shared, "m64n128k32.s32.s8.s8" in made.asm["ptx"], "cubin" in made.asm)
"""


@pytest.mark.skipif(not knows_gluon(), reason="needs Triton 3.6 to 3.9")
def test_product_compiles_for_hopper_without_a_card() -> None:
    """Gluon has no interpreter; the numbers are compared on a card, in `test_int8.py`."""
    environment = {**os.environ, "TRITON_INTERPRET": "0"}
    done = subprocess.run(
        [sys.executable, "-c", _COMPILE], env=environment, capture_output=True, text=True
    )
    shared, *found = done.stdout.split() or [done.stderr]
    assert found == ["True", "True"], shared
    assert int(shared) <= 227 * 1024  # what a program may take of a multiprocessor
