"""Torch dequantisation against the `gguf` package, bit for bit."""

from __future__ import annotations

import gguf
import numpy as np
import pytest
import torch

from comfyui_multitalk.wan_gguf_loader import dequant
from comfyui_multitalk.wan_gguf_loader.dequant import BLOCK_TYPES, dequantize
from comfyui_multitalk.wan_gguf_loader.errors import GGUFError
from comfyui_multitalk.wan_gguf_loader.types import GGML_TYPES, TYPES_BY_NAME

# byte positions of the float16 scales of a block
SCALES = {
    "Q4_0": (0,),
    "Q4_1": (0, 2),
    "Q5_0": (0,),
    "Q5_1": (0, 2),
    "Q8_0": (0,),
    "Q2_K": (80, 82),
    "Q3_K": (108,),
    "Q4_K": (0, 2),
    "Q5_K": (0, 2),
    "Q6_K": (208,),
    "TQ1_0": (52,),
    "TQ2_0": (64,),
    "IQ1_S": (0,),
    "IQ2_XXS": (0,),
    "IQ2_XS": (0,),
    "IQ2_S": (0,),
    "IQ3_XXS": (0,),
    "IQ3_S": (0,),
    "IQ4_NL": (0,),
    "IQ4_XS": (0,),
    "IQ1_M": (),  # spread over four words
    "MXFP4": (),  # one exponent byte
    "NVFP4": (),  # four small floats
}
HALVES = {
    "random": None,
    "zero": 0.0,
    "minus_zero": -0.0,
    "subnormal": 6e-8,
    "largest": 65504.0,
    "negative": -0.37,
    "infinite": float("inf"),
    "nan": float("nan"),
}
PAYLOADS = ("random", "zeros", "ones")


def make_blocks(type_name: str, payload: str, scale: str, num_blocks: int) -> np.ndarray:
    rng = np.random.default_rng([*type_name.encode(), PAYLOADS.index(payload)])
    block_bytes = TYPES_BY_NAME[type_name].bytes
    blocks = rng.integers(0, 256, (num_blocks, block_bytes), dtype=np.uint8)
    if payload != "random":
        blocks[:] = 0 if payload == "zeros" else 255
    for position in SCALES[type_name]:
        value = HALVES[scale]
        halves = rng.normal(0, 0.05, num_blocks) if value is None else np.full(num_blocks, value)
        blocks[:, position : position + 2] = halves.astype("<f2").view(np.uint8).reshape(-1, 2)
    return blocks


def reference(blocks: np.ndarray, type_name: str) -> np.ndarray:
    with np.errstate(all="ignore"):
        return gguf.quants.dequantize(blocks, gguf.GGMLQuantizationType[type_name])


def assert_same_bits(ours: torch.Tensor, theirs: np.ndarray) -> None:
    """Equal bits, or NaN on both sides (the payload of a NaN depends on the processor)."""
    a, b = ours.numpy().ravel(), theirs.astype(np.float32, copy=False).ravel()
    assert a.shape == b.shape
    same = (a.view(np.uint32) == b.view(np.uint32)) | (np.isnan(a) & np.isnan(b))
    assert same.all(), f"{(~same).sum()} of {same.size} differ, first at {np.argmin(same)}"


def test_types_decoded_are_all_that_gguf_decodes() -> None:
    theirs = {t.name for t in gguf.quants._type_traits} - {"BF16"}
    assert theirs == BLOCK_TYPES == SCALES.keys()


def test_types_table_equals_gguf() -> None:
    for type_id, ours in GGML_TYPES.items():
        theirs = gguf.GGMLQuantizationType(type_id)
        assert (ours.name, (ours.block, ours.bytes)) == (
            theirs.name,
            gguf.GGML_QUANT_SIZES[theirs],
        )


@pytest.mark.parametrize("scale", HALVES)
@pytest.mark.parametrize("payload", PAYLOADS)
@pytest.mark.parametrize("type_name", sorted(BLOCK_TYPES))
def test_dequantize_equals_gguf(type_name: str, payload: str, scale: str) -> None:
    blocks = make_blocks(type_name, payload, scale, 21)
    shape = (7, 3 * TYPES_BY_NAME[type_name].block)
    ours = dequantize(torch.from_numpy(blocks), type_name, shape)
    assert ours.shape == shape
    assert ours.dtype == torch.float32
    assert_same_bits(ours, reference(blocks, type_name))


@pytest.mark.parametrize("type_name", ["MXFP4", "NVFP4", "IQ1_M"])
def test_dequantize_every_scale_byte_equals_gguf(type_name: str) -> None:
    blocks = make_blocks(type_name, "random", "random", 256)
    where = {"MXFP4": [0], "NVFP4": [0, 1, 2, 3], "IQ1_M": [49, 51, 53, 55]}[type_name]
    blocks[:, where] = np.arange(256, dtype=np.uint8)[:, None]
    ours = dequantize(torch.from_numpy(blocks), type_name, (256, TYPES_BY_NAME[type_name].block))
    assert_same_bits(ours, reference(blocks, type_name))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("type_name", sorted(BLOCK_TYPES))
def test_dequantize_rounds_once_to_dtype(type_name: str, dtype: torch.dtype) -> None:
    packed = torch.from_numpy(make_blocks(type_name, "random", "random", 8))
    shape = (8, TYPES_BY_NAME[type_name].block)
    exact = dequantize(packed, type_name, shape)
    rounded = dequantize(packed, type_name, shape, dtype)
    assert rounded.dtype == dtype
    torch.testing.assert_close(rounded, exact.to(dtype), rtol=0, atol=0, equal_nan=True)


def test_dequantize_more_than_one_chunk_equals_gguf() -> None:
    blocks = make_blocks("Q4_K", "random", "random", (1 << 12) + 5)  # a chunk is 2^20 elements
    ours = dequantize(torch.from_numpy(blocks), "Q4_K", (len(blocks), 256))
    assert_same_bits(ours, reference(blocks, "Q4_K"))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("type_name", sorted(BLOCK_TYPES))
def test_dequantize_on_the_gpu_equals_gguf(type_name: str) -> None:
    blocks = make_blocks(type_name, "random", "random", 21)
    shape = (21, TYPES_BY_NAME[type_name].block)
    ours = dequantize(torch.from_numpy(blocks).cuda(), type_name, shape)
    assert ours.is_cuda
    assert_same_bits(ours.cpu(), reference(blocks, type_name))


def test_dequantize_rows_that_are_not_contiguous_are_read_right() -> None:
    wide = torch.from_numpy(make_blocks("Q8_0", "random", "random", 8))
    padded = torch.cat((wide, torch.zeros(8, 6, dtype=torch.uint8)), dim=1)[:, :34]
    assert not padded.is_contiguous()
    assert torch.equal(dequantize(padded, "Q8_0", (8, 32)), dequantize(wide, "Q8_0", (8, 32)))


@pytest.mark.parametrize("type_name", ["F32", "F16", "BF16"])
def test_dequantize_plain_types_from_bytes_and_from_tensor(type_name: str) -> None:
    data = np.random.default_rng(0).normal(0, 1, (3, 8)).astype(np.float32)
    packed = gguf.quants.quantize(data, gguf.GGMLQuantizationType[type_name]).view(np.uint8)
    theirs = reference(packed, type_name)
    from_bytes = dequantize(torch.from_numpy(packed), type_name, (3, 8))
    assert_same_bits(from_bytes, theirs)
    stored = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}[type_name]
    assert_same_bits(dequantize(from_bytes.to(stored), type_name, (3, 8)), theirs)


def test_dequantize_leaves_the_packed_bytes_alone() -> None:
    packed = torch.from_numpy(make_blocks("TQ1_0", "random", "random", 4))
    before = packed.clone()
    dequantize(packed, "TQ1_0", (4, 256))
    assert torch.equal(packed, before)


@pytest.mark.parametrize(
    ("num_bytes", "type_name", "shape", "message"),
    [
        (34, "Q9_9", (32,), "'Q9_9' cannot be decoded"),
        (33, "Q8_0", (32,), "need 34 bytes, not 33"),
        (34, "Q8_0", (31,), "a multiple of 32 elements"),
        (34, "F32", (8,), "need 32 bytes, not 34"),
    ],
    ids=["unknown_type", "bytes", "shape", "plain_bytes"],
)
def test_dequantize_what_does_not_fit_is_refused(
    num_bytes: int, type_name: str, shape: tuple[int, ...], message: str
) -> None:
    with pytest.raises(GGUFError, match=message):
        dequantize(torch.zeros(num_bytes, dtype=torch.uint8), type_name, shape)


@pytest.mark.parametrize("num_blocks", [1, 2, 3])
@pytest.mark.parametrize("type_name", sorted(BLOCK_TYPES))
def test_dequantize_few_blocks_equals_gguf(type_name: str, num_blocks: int) -> None:
    """The fields of a single block are contiguous as they lie, at any offset."""
    blocks = make_blocks(type_name, "random", "random", num_blocks)
    shape = (num_blocks, TYPES_BY_NAME[type_name].block)
    ours = dequantize(torch.from_numpy(blocks), type_name, shape)
    assert_same_bits(ours, reference(blocks, type_name))


@pytest.mark.parametrize("type_name", sorted(BLOCK_TYPES))
def test_dequantize_last_chunk_of_one_block_equals_gguf(
    type_name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    block = TYPES_BY_NAME[type_name].block
    monkeypatch.setitem(dequant._CHUNK_ELEMENTS, "cpu", 2 * block)
    blocks = make_blocks(type_name, "random", "random", 5)
    ours = dequantize(torch.from_numpy(blocks), type_name, (5, block))
    assert_same_bits(ours, reference(blocks, type_name))
