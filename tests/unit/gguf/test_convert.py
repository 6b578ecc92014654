"""The converter writes what city96's recipe asks for, and files other readers accept."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from gguf import GGUFReader
from safetensors.torch import save_file
from torch import Tensor

from comfyui_multitalk.tools.convert import FILE_TYPES, convert, main
from comfyui_multitalk.wan_gguf_loader.files import open_weights

WIDTH, FFN = 256, 512
B = "blocks.0."


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)) * 0.1


def wan(dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
    square = ("self_attn.q", "self_attn.v", "cross_attn.v", "cross_attn.v_img",
              "audio_cross_attn.proj")  # fmt: skip
    content = {f"{B}{name}.weight": normal(WIDTH, WIDTH, seed=i) for i, name in enumerate(square)}
    content |= {
        f"{B}ffn.0.weight": normal(FFN, WIDTH),
        f"{B}ffn.2.weight": normal(WIDTH, FFN),
        f"{B}self_attn.q.bias": normal(WIDTH),
        f"{B}modulation": normal(1, 6, WIDTH),
        "patch_embedding.weight": normal(WIDTH, 36, 1, 2, 2),
        "patch_embedding.bias": normal(WIDTH),
        "text_embedding.0.weight": normal(WIDTH, WIDTH),
        "time_projection.1.weight": normal(6 * WIDTH, WIDTH),
        "img_emb.emb_pos": normal(1, 514, 8),
        "head.head.weight": normal(64, WIDTH),
        "audio_proj.proj1.weight": normal(64, WIDTH),
    }
    return {name: tensor.to(dtype) for name, tensor in content.items()}


@pytest.fixture
def source(tmp_path: Path) -> Path:
    save_file(wan(), tmp_path / "in.safetensors", metadata={"num_heads": "4"})
    return tmp_path / "in.safetensors"


def types(path: Path) -> dict[str, str]:
    return {tensor.name: tensor.tensor_type.name for tensor in GGUFReader(path).tensors}


@pytest.mark.parametrize(
    ("type", "default", "values", "ffn_2"),
    [
        ("Q4_K_M", "Q4_K", "Q6_K", "Q6_K"),
        ("Q4_K", "Q4_K", "Q4_K", "Q4_K"),
        ("Q6_K", "Q6_K", "Q6_K", "Q6_K"),
        ("Q8_0", "Q8_0", "Q8_0", "Q8_0"),
        ("Q5_0", "Q5_0", "Q5_0", "Q5_1"),
        ("Q4_0", "Q4_0", "Q4_0", "Q4_1"),
    ],
)
def test_convert_mixes_types_as_city96(
    type: str, default: str, values: str, ffn_2: str, source: Path, tmp_path: Path
) -> None:
    convert(source, tmp_path / "out.gguf", type=type)
    found = types(tmp_path / "out.gguf")
    assert found == {
        f"{B}self_attn.q.weight": default,
        f"{B}self_attn.v.weight": values,
        f"{B}cross_attn.v.weight": values,
        f"{B}cross_attn.v_img.weight": default,
        f"{B}audio_cross_attn.proj.weight": default,
        f"{B}ffn.0.weight": default,
        f"{B}ffn.2.weight": ffn_2,
        f"{B}self_attn.q.bias": "F32",
        f"{B}modulation": "F32",
        "patch_embedding.weight": "F32",
        "patch_embedding.bias": "F32",
        "text_embedding.0.weight": "F16",
        "time_projection.1.weight": "F16",
        "img_emb.emb_pos": "F16",
        "head.head.weight": "F16",
        "audio_proj.proj1.weight": "F16",
    }


def test_convert_keeps_order_shapes_and_values(source: Path, tmp_path: Path) -> None:
    convert(source, tmp_path / "out.gguf", type="Q8_0")
    before, after = open_weights(source), open_weights(tmp_path / "out.gguf")
    assert list(after.tensors) == list(before.tensors)
    assert after.shapes == before.shapes
    for name, info in after.tensors.items():
        expected, found = before.dequantize(name), after.dequantize(name)
        limit = {"F32": 0.0, "F16": 5e-4, "Q8_0": 0.01}[info.type]
        assert float((found - expected).norm()) <= limit * float(expected.norm())


def test_convert_patch_embedding_is_five_dimensional_or_folded(
    source: Path, tmp_path: Path
) -> None:
    for fold, dims in ((False, [2, 2, 1, 36, WIDTH]), (True, [2, 2, 1, 36 * WIDTH])):
        convert(source, tmp_path / "out.gguf", type="Q8_0", fold_patch_embedding=fold)
        tensors = {tensor.name: tensor for tensor in GGUFReader(tmp_path / "out.gguf").tensors}
        patch = tensors["patch_embedding.weight"]
        assert patch.shape.tolist() == dims
        assert torch.equal(
            torch.from_numpy(patch.data.copy()).flatten(), wan()["patch_embedding.weight"].flatten()
        )


@pytest.mark.parametrize("type", FILE_TYPES)
def test_convert_metadata_is_city96s(type: str, source: Path, tmp_path: Path) -> None:
    convert(source, tmp_path / "out.gguf", type=type)
    fields = {f.name: f.contents() for f in GGUFReader(tmp_path / "out.gguf").fields.values()}
    assert fields["general.architecture"] == "wan"
    assert fields["general.quantization_version"] == 2
    assert fields["general.file_type"] == FILE_TYPES[type]
    assert fields["wan.attention.head_count"] == 4


@pytest.mark.parametrize(
    ("stored", "kept"),
    [
        (torch.bfloat16, "BF16"),
        (torch.float16, "F16"),
        (torch.float8_e4m3fn, "F16"),
    ],
    ids=["bf16", "fp16", "fp8"],
)
def test_convert_other_inputs_keep_their_precision(
    stored: torch.dtype, kept: str, tmp_path: Path
) -> None:
    content = wan(stored)
    save_file(content, tmp_path / "in.safetensors")
    convert(tmp_path / "in.safetensors", tmp_path / "out.gguf", type="Q4_K_M")
    found = types(tmp_path / "out.gguf")
    assert found["text_embedding.0.weight"] == kept
    assert found[f"{B}self_attn.q.weight"] == "Q4_K"
    after = open_weights(tmp_path / "out.gguf")
    for name, type in found.items():
        if type in ("F32", "F16", "BF16"):
            assert torch.equal(after.dequantize(name), content[name].float())


@pytest.mark.parametrize(
    ("columns", "expected"), [(512, "Q4_K"), (96, "Q8_0"), (90, "F16")]
)  # fmt: skip
def test_convert_rows_that_do_not_divide_fall_back(
    columns: int, expected: str, tmp_path: Path
) -> None:
    save_file({f"{B}self_attn.q.weight": normal(128, columns)}, tmp_path / "in.safetensors")
    convert(tmp_path / "in.safetensors", tmp_path / "out.gguf", type="Q4_K")
    assert types(tmp_path / "out.gguf") == {f"{B}self_attn.q.weight": expected}


def test_convert_strips_the_wrappers_prefix(source: Path, tmp_path: Path) -> None:
    wrapped = {f"model.diffusion_model.{name}": tensor for name, tensor in wan().items()}
    save_file(wrapped, tmp_path / "wrapped.safetensors")
    convert(tmp_path / "wrapped.safetensors", tmp_path / "wrapped.gguf", num_heads=4)
    convert(source, tmp_path / "out.gguf")
    assert types(tmp_path / "wrapped.gguf") == types(tmp_path / "out.gguf")


def test_convert_parts_of_a_split_model_become_one_file(source: Path, tmp_path: Path) -> None:
    content = list(wan().items())
    for i, part in enumerate((content[:5], content[5:])):
        save_file(dict(part), tmp_path / f"{i}.safetensors")
    parts = [tmp_path / "0.safetensors", tmp_path / "1.safetensors"]
    convert(parts, tmp_path / "parts.gguf", num_heads=4)
    convert(source, tmp_path / "out.gguf")
    assert types(tmp_path / "parts.gguf") == types(tmp_path / "out.gguf")


@pytest.mark.parametrize(
    ("metadata", "num_heads", "expected"),
    [
        ({"num_heads": "4"}, None, 4),
        ({"config": json.dumps({"model": {"num_heads": 8}})}, None, 8),
        ({"num_heads": "4"}, 16, 16),
        ({}, None, None),
        ({"num_heads": "2"}, None, None),
    ],
    ids=["metadata", "config", "argument_wins", "derived", "as_derived"],
)
def test_convert_writes_head_count_unless_it_is_width_over_128(
    metadata: dict[str, str], num_heads: int | None, expected: int | None, tmp_path: Path
) -> None:
    save_file(wan(), tmp_path / "in.safetensors", metadata=metadata)
    convert(tmp_path / "in.safetensors", tmp_path / "out.gguf", num_heads=num_heads)
    assert open_weights(tmp_path / "out.gguf").num_heads == expected


BAD: dict[str, tuple[dict[str, Tensor], str]] = {
    "heads": ({f"{B}self_attn.q.weight": normal(96, 96)}, "--num-heads"),
    "not_wan": ({"encoder.weight": normal(4, 4)}, r"blocks\.0"),
    "scaled": (
        {
            f"{B}q.weight": torch.zeros(4, 4, dtype=torch.float8_e4m3fn),
            f"{B}q.scale_weight": torch.ones(()),
        },
        "quantised already",
    ),
    "int8": ({f"{B}q.weight": torch.zeros(4, 4, dtype=torch.int8)}, "quantised already"),
    "nan": ({f"{B}q.weight": torch.full((64, 256), torch.nan)}, f"{B}q.weight.*NaN"),
    "too_large": ({**wan(), "text_embedding.0.weight": normal(64, 64) + 1e5}, "finite as F16"),
}


@pytest.mark.parametrize(("content", "message"), BAD.values(), ids=BAD)
def test_convert_bad_input_is_named_and_leaves_nothing(
    content: dict[str, Tensor], message: str, tmp_path: Path
) -> None:
    save_file(content, tmp_path / "in.safetensors")
    with pytest.raises(ValueError, match=message):
        convert(tmp_path / "in.safetensors", tmp_path / "out.gguf")
    assert [path.name for path in tmp_path.iterdir()] == ["in.safetensors"]


def test_convert_same_part_twice_is_refused(source: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="there twice"):
        convert([source, source], tmp_path / "out.gguf")


def test_convert_unknown_type_lists_the_types(source: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"'Q3_K'; choose one of .*Q4_K_M"):
        convert(source, tmp_path / "out.gguf", type="Q3_K")


def test_convert_failure_keeps_an_existing_file(tmp_path: Path) -> None:
    (tmp_path / "out.gguf").write_bytes(b"before")
    save_file(BAD["nan"][0], tmp_path / "in.safetensors")
    with pytest.raises(ValueError, match="NaN"):
        convert(tmp_path / "in.safetensors", tmp_path / "out.gguf")
    assert (tmp_path / "out.gguf").read_bytes() == b"before"


def test_convert_command_writes_the_file(source: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.gguf"
    assert main([str(source), str(out), "--type", "Q8_0", "--num-heads", "8"]) == 0
    assert open_weights(out).num_heads == 8
    assert types(out)[f"{B}self_attn.q.weight"] == "Q8_0"


def test_convert_command_bad_input_is_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "in.safetensors").write_text("<html>no</html>")
    assert main([str(tmp_path / "in.safetensors"), str(tmp_path / "out.gguf")]) == 2
    message = capsys.readouterr().err
    assert message.startswith("convert: in.safetensors")
    assert message.count("\n") == 1
