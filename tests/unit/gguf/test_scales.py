"""Weights with scales beside them, in every form, against values that are decoded here."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from comfyui_multitalk.wan_gguf_loader.errors import GGUFError
from comfyui_multitalk.wan_gguf_loader.files import open_weights

NAME = "blocks.0.self_attn.q"
SCALE_ENDS = ("scale_weight", "weight_scale", "weight_scale_inv", "weight.scale", "weight_scales")


@pytest.fixture
def weight() -> Tensor:
    return torch.randn(32, 64, generator=torch.Generator().manual_seed(0))


def write(path: Path, tensors: dict[str, Tensor], **metadata: str) -> Path:
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, path, metadata)
    return path


def as_json(value: object) -> Tensor:
    return torch.tensor(list(json.dumps(value).encode()), dtype=torch.uint8)


def decoded(path: Path) -> Tensor:
    file = open_weights(path)
    assert set(file.tensors) == {f"{NAME}.weight"}  # the scales are used up
    return file.dequantize(f"{NAME}.weight")


@pytest.mark.parametrize("end", SCALE_ENDS)
@pytest.mark.parametrize("shape", [(), (1,), (32,), (32, 1)], ids=str)
@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.float8_e5m2, torch.int8], ids=str)
def test_scale_of_a_tensor_or_a_row(
    end: str, shape: tuple[int, ...], dtype: torch.dtype, weight: Tensor, tmp_path: Path
) -> None:
    values = (weight * 30).round().to(dtype)
    scale = torch.rand(shape) + 0.5
    tensors = {
        "scaled_fp8": torch.zeros(2, dtype=torch.float8_e4m3fn),
        f"{NAME}.weight": values,
        f"{NAME}.{end}": scale,
        f"{NAME}.scale_input": torch.ones(()),
    }
    path = write(tmp_path / "x.safetensors", tensors)
    assert torch.equal(decoded(path), values.float() * scale.reshape(-1, 1))
    info = open_weights(path).tensors[f"{NAME}.weight"]
    assert (info.type[-5:], info.shape, info.nbytes) == ("_ROWS", (32, 64), 32 * 80)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
def test_wide_values_with_a_scale(dtype: torch.dtype, weight: Tensor, tmp_path: Path) -> None:
    values, scale = weight.to(dtype), torch.rand(32) + 0.5
    tensors = {f"{NAME}.weight": values, f"{NAME}.weight_scale": scale}
    path = write(tmp_path / "x.safetensors", tensors)
    assert torch.equal(decoded(path), values.float() * scale[:, None])


@pytest.mark.parametrize("end", SCALE_ENDS)
def test_scale_of_a_joint_weight_of_torchs_attention(
    end: str, weight: Tensor, tmp_path: Path
) -> None:
    """`attn.in_proj_weight` (open-clip) has no dot before its last word."""
    values = weight.to(torch.float8_e4m3fn)
    tensors = {"attn.in_proj_weight": values, f"attn.in_proj_{end}": torch.tensor(0.5)}
    file = open_weights(write(tmp_path / "x.safetensors", tensors))
    assert torch.equal(file.dequantize("attn.in_proj_weight"), values.float() * 0.5)
    assert len(file.tensors) == 1


@pytest.mark.parametrize("blocks", [(2, 4), (1, 64), (32, 2)], ids=str)
def test_scales_of_blocks(blocks: tuple[int, int], weight: Tensor, tmp_path: Path) -> None:
    values, scale = weight.to(torch.float8_e4m3fn), torch.rand(blocks) + 0.5
    tensors = {f"{NAME}.weight": values, f"{NAME}.weight_scale_inv": scale}
    path = write(tmp_path / "x.safetensors", tensors)
    spread = scale.repeat_interleave(32 // blocks[0], 0).repeat_interleave(64 // blocks[1], 1)
    assert torch.equal(decoded(path), values.float() * spread)


def test_last_block_of_128_may_be_shorter(tmp_path: Path) -> None:
    values = torch.randn(192, 130).to(torch.float8_e4m3fn)
    scale = torch.tensor([[2.0, 3.0], [4.0, 5.0]])
    tensors = {f"{NAME}.weight": values, f"{NAME}.weight_scale_inv": scale}
    result = decoded(write(tmp_path / "x.safetensors", tensors))
    assert torch.equal(result[128:, 128:], values[128:, 128:].float() * 5)
    assert torch.equal(result[:128, :128], values[:128, :128].float() * 2)


def tiles(scale: Tensor) -> Tensor:
    """Put `(rows, columns)` into the tiles of cuBLAS, one number at a time, by its formula."""
    rows, columns = scale.shape
    down, across = -(-rows // 128), -(-columns // 4)
    result = torch.zeros(down * 128 * across * 4, dtype=torch.uint8)
    plain = scale.view(torch.uint8)
    for row in range(rows):
        for column in range(columns):
            tile = row // 128 * across + column // 4
            inside = row % 32 * 16 + row % 128 // 32 * 4 + column % 4
            result[tile * 512 + inside] = plain[row, column]
    return result.view(down * 128, across * 4)


@pytest.mark.parametrize("described", ["tensor", "metadata"])
def test_fp4_of_comfy_quant(described: str, tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(1)
    codes = torch.randint(0, 16, (160, 96), generator=generator, dtype=torch.uint8)
    scale = (torch.rand(160, 6, generator=generator) + 0.1).to(torch.float8_e4m3fn)
    second = torch.tensor(0.25)
    levels = torch.tensor([0, 0.5, 1, 1.5, 2, 3, 4, 6])
    values = levels[(codes & 7).int()] * torch.where(codes > 7, -1, 1)
    tensors = {
        f"{NAME}.weight": codes[:, ::2] << 4 | codes[:, 1::2],
        f"{NAME}.weight_scale": tiles(scale).view(torch.float8_e4m3fn),
        f"{NAME}.weight_scale_2": second,
    }
    metadata = {}
    if described == "tensor":
        tensors[f"{NAME}.comfy_quant"] = as_json({"format": "nvfp4"})
    else:
        metadata["_quantization_metadata"] = json.dumps({"layers": {NAME: {"format": "nvfp4"}}})
    path = write(tmp_path / "x.safetensors", tensors, **metadata)
    spread = (scale.float() * second).repeat_interleave(16, 1)
    assert torch.equal(decoded(path), values * spread)


def test_fp8_in_blocks_of_32_of_comfy_quant(tmp_path: Path) -> None:
    values = torch.randn(40, 160).to(torch.float8_e4m3fn)
    scale = torch.randint(120, 134, (40, 5), dtype=torch.uint8)
    tensors = {
        f"{NAME}.weight": values,
        f"{NAME}.weight_scale": tiles(scale),
        f"{NAME}.comfy_quant": as_json({"format": "mxfp8"}),
    }
    path = write(tmp_path / "x.safetensors", tensors)
    factor = torch.exp2(scale.float() - 127).repeat_interleave(32, 1)
    assert torch.equal(decoded(path), values.float() * factor)


@pytest.mark.parametrize("format", ["float8_e4m3fn", "float8_e5m2", "int8_tensorwise"])
@pytest.mark.parametrize("as_bytes", [False, True], ids=["typed", "as_bytes"])
def test_bytes_of_comfy_quant(format: str, as_bytes: bool, weight: Tensor, tmp_path: Path) -> None:
    dtype = torch.int8 if format == "int8_tensorwise" else getattr(torch, format)
    values, scale = (weight * 20).to(dtype), torch.tensor(0.125)
    tensors = {
        f"{NAME}.weight": values.view(torch.uint8) if as_bytes else values,
        f"{NAME}.weight_scale": scale,
        f"{NAME}.comfy_quant": as_json({"format": format, "full_precision_matrix_mult": True}),
    }
    path = write(tmp_path / "x.safetensors", tensors)
    assert torch.equal(decoded(path), values.float() * scale)


E4M3 = torch.zeros(32, 64, dtype=torch.float8_e4m3fn)
ONE = torch.ones(())


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        ({"weight": E4M3, "weight_scale": torch.ones(31)}, "has the scale .*does not fit"),
        ({"weight": E4M3, "weight_scale": torch.ones(3, 64)}, "does not fit"),
        ({"weight": E4M3, "weight_scale": ONE.int()}, "does not fit"),
        ({"weight": torch.ones(2, 2).int(), "weight_scale": ONE}, "does not fit"),
        ({"weight": E4M3, "weight_scale": ONE, "scale_weight": ONE + 1}, "has 2 scales"),
        ({"weight": E4M3, "comfy_quant": as_json({"format": "float8_e4m3fn"})}, "has 0 scales"),
        ({"weight": E4M3, "comfy_quant": as_json({"format": "convrot_w4a4"})}, "convrot_w4a4"),
        ({"weight": E4M3, "comfy_quant": as_json([1])}, "no JSON object"),
        ({"weight": E4M3, "comfy_quant": torch.zeros(3, dtype=torch.uint8)}, "JSON"),
        (
            {
                "weight": E4M3.view(torch.int8),
                "weight_scale": ONE,
                "comfy_quant": as_json({"format": "int8_tensorwise", "convrot": True}),
            },
            "rotated rows",
        ),
        (
            {
                "weight": E4M3.view(torch.uint8),
                "weight_scale": E4M3.clone(),
                "comfy_quant": as_json({"format": "nvfp4"}),
            },
            "does not fit",
        ),
        (
            {"weight": E4M3, "weight_scale": ONE, "comfy_quant": as_json({"format": "nvfp4"})},
            "holds F8_E4M3 numbers, not nvfp4",
        ),
    ],
)
def test_scales_that_do_not_fit_are_refused(
    tensors: dict[str, Tensor], message: str, tmp_path: Path
) -> None:
    path = write(tmp_path / "x.safetensors", {f"{NAME}.{end}": t for end, t in tensors.items()})
    with pytest.raises(GGUFError, match=f"^x.safetensors: tensor '{NAME}.*{message}.*Get another"):
        open_weights(path)
