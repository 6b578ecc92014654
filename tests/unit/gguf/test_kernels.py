"""Triton's decoding against the `gguf` package; interpreted where there is no card."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType
from gguf.quants import dequantize as by_gguf

from comfyui_multitalk.wan_gguf_loader.dequant import dequantize
from comfyui_multitalk.wan_gguf_loader.rows import ROW_TYPES, decode_rows, pack_rows

pytest.importorskip("triton", reason="needs Triton: pip install triton")
kernels = pytest.importorskip("comfyui_multitalk.wan_gguf_loader.kernels.dequant")
row_kernels = pytest.importorskip("comfyui_multitalk.wan_gguf_loader.kernels.rows")

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
NUM_BLOCKS = 300  # no multiple of what a program decodes


def random_blocks(type: str) -> np.ndarray:
    """Blocks of random bytes, every float16 in them finite."""
    _, size = GGML_QUANT_SIZES[GGMLQuantizationType[type]]
    random = np.random.default_rng(len(type)).integers(0, 256, (NUM_BLOCKS, size))
    return (random & 0xBF).astype(np.uint8)


@pytest.mark.parametrize("type", kernels.KERNELS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=["float32", "float16"])
def test_kernel_decodes_as_gguf_bit_for_bit(type: str, dtype: torch.dtype) -> None:
    blocks = random_blocks(type)
    expected = torch.from_numpy(by_gguf(blocks, GGMLQuantizationType[type])).to(dtype)
    out = torch.full(expected.shape, 7, dtype=dtype, device=DEVICE)
    kernels.dequantize_into(out, torch.from_numpy(blocks).to(DEVICE), type)
    assert torch.equal(out.cpu(), expected)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("type", kernels.KERNELS)
def test_dequantize_on_a_card_rounds_to_bfloat16_as_on_the_cpu(type: str) -> None:
    blocks = torch.from_numpy(random_blocks(type))
    shape = (NUM_BLOCKS, GGML_QUANT_SIZES[GGMLQuantizationType[type]][0])
    expected = dequantize(blocks, type, shape, dtype=torch.bfloat16)
    result = dequantize(blocks.cuda(), type, shape, dtype=torch.bfloat16)
    assert torch.equal(result.cpu(), expected)


@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # NaN and overflow among the bytes
@pytest.mark.parametrize("type", ROW_TYPES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=["float32", "float16"])
@pytest.mark.parametrize("row_len", [100, 4100])
def test_kernel_decodes_every_byte_of_rows_as_the_reference(
    type: str, dtype: torch.dtype, row_len: int
) -> None:
    every = torch.arange(3 * row_len).view(3, row_len) % 256
    scale = torch.tensor([1.7, -0.3, 1e-5])
    packed = pack_rows(every.to(torch.uint8).view(ROW_TYPES[type].dtype), scale)
    expected = decode_rows(packed, type).to(dtype)
    out = torch.full(expected.shape, 7, dtype=dtype, device=DEVICE)
    row_kernels.decode_into(out, packed.to(DEVICE), type)
    assert torch.equal(out.cpu().nan_to_num(9), expected.nan_to_num(9))
