"""Weights files of both kinds: what is in them, reading, and files that change under the reader."""

from __future__ import annotations

import json
import os
import struct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import gguf
import pytest
import torch
from safetensors.torch import load_file, save_file

from comfyui_multitalk.tests.support import gguf_bytes as make
from comfyui_multitalk.wan_gguf_loader.errors import GGUFError
from comfyui_multitalk.wan_gguf_loader.files import TensorInfo, WeightsFile, open_weights
from comfyui_multitalk.wan_gguf_loader.types import PLAIN_DTYPES


@pytest.fixture
def small(tmp_path: Path) -> Path:
    path = tmp_path / "small.gguf"
    path.write_bytes(make.small_file())
    return path


@pytest.fixture
def tensors() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(3)
    base = torch.randn(4, 6, generator=generator)
    result = {"bool": base > 0, "scalar": torch.tensor(2.5), "none": torch.zeros(0, 4)}
    for name, dtype in PLAIN_DTYPES.items():
        if name != "BOOL":
            values = (base * 20).abs() if name.startswith("U") else base * 20
            result[name] = values.to(dtype)
    return result


@pytest.fixture
def plain(tmp_path: Path, tensors: dict[str, torch.Tensor]) -> Path:
    path = tmp_path / "plain.safetensors"
    save_file(tensors, path, metadata={"num_heads": "12", "note": "x"})
    return path


def raw_safetensors(header: object, data: bytes = b"", *, length: int | None = None) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + data


def header_of(**changes: object) -> dict[str, object]:
    return {"w": {"dtype": "F32", "shape": [2, 4], "data_offsets": [0, 32], **changes}}


# reading


def test_gguf_tensors_are_read_packed_and_plain(small: Path) -> None:
    with open_weights(small) as file:
        assert file.format == "gguf"
        assert file.tensors["packed.weight"] == TensorInfo("packed.weight", (3, 32), "Q8_0", 102)
        assert file.tensors["packed.weight"].num_elements == 96
        packed = file.read("packed.weight")
        assert packed.dtype == torch.uint8
        assert packed.shape == (3, 34)
        assert packed.flatten().tolist() == list(range(102))
        assert file.read("plain.weight").tolist() == [[0, 1, 2, 3], [4, 5, 6, 7]]


def test_dequantize_gives_logical_shape_and_dtype(small: Path) -> None:
    with open_weights(small) as file:
        weight = file.dequantize("packed.weight", torch.bfloat16)
        packed = file.read("packed.weight").numpy()
    exact = gguf.quants.dequantize(packed, gguf.GGMLQuantizationType.Q8_0)
    assert weight.shape == (3, 32)
    assert weight.dtype == torch.bfloat16
    assert torch.equal(weight, torch.from_numpy(exact).bfloat16())


def test_safetensors_of_every_dtype_equal_the_library(plain: Path) -> None:
    theirs = load_file(plain)
    with open_weights(plain) as file:
        assert file.format == "safetensors"
        assert file.tensors.keys() == theirs.keys()
        for name, expected in theirs.items():
            ours = file.read(name)
            assert (ours.dtype, ours.shape) == (expected.dtype, expected.shape)
            assert torch.equal(*(t.reshape(-1).view(torch.uint8) for t in (ours, expected)))


def test_safetensors_dequantize_casts(plain: Path, tensors: dict[str, torch.Tensor]) -> None:
    with open_weights(plain) as file:
        assert torch.equal(file.dequantize("F8_E4M3"), tensors["F8_E4M3"].float())
        assert torch.equal(file.dequantize("F64", torch.float16), tensors["F64"].half())


def test_read_tensor_owns_its_memory(small: Path) -> None:
    with open_weights(small) as file:
        first = file.read("plain.weight")
        first += 1
        assert file.read("plain.weight").tolist()[0] == [0, 1, 2, 3]
    small.unlink()
    assert first.tolist()[0] == [1, 2, 3, 4]


def test_opened_file_is_not_mapped_or_held(small: Path) -> None:
    before = len(os.listdir("/proc/self/fd")) if Path("/proc/self/fd").exists() else 0
    file = open_weights(small)
    file.read("plain.weight")
    if before:
        assert len(os.listdir("/proc/self/fd")) == before
        assert str(small) not in Path("/proc/self/maps").read_text()


def test_kind_is_told_by_content_not_by_name(small: Path, plain: Path, tmp_path: Path) -> None:
    swapped = tmp_path / "swapped.safetensors", tmp_path / "swapped.gguf"
    small.rename(swapped[0])
    plain.rename(swapped[1])
    assert [open_weights(path).format for path in swapped] == ["gguf", "safetensors"]


def test_names_lose_the_wrappers_prefix(tmp_path: Path) -> None:
    path = tmp_path / "prefixed.safetensors"
    save_file({"model.diffusion_model.a.weight": torch.ones(3)}, path)
    with open_weights(path) as file:
        assert list(file.tensors) == ["a.weight"]
        assert file.read("a.weight").tolist() == [1, 1, 1]


def test_folded_patch_embedding_and_bare_modulation_get_their_shapes(tmp_path: Path) -> None:
    path = tmp_path / "folded.safetensors"
    weight = torch.arange(8 * 3 * 4.0)
    stored = {
        "patch_embedding.weight": weight.view(24, 1, 2, 2),
        "patch_embedding.bias": torch.zeros(8),
        "blocks.0.modulation": torch.zeros(6, 8),
    }
    save_file(stored, path)
    with open_weights(path) as file:
        assert file.shapes["patch_embedding.weight"] == (8, 3, 1, 2, 2)
        assert file.shapes["blocks.0.modulation"] == (1, 6, 8)
        assert torch.equal(file.read("patch_embedding.weight"), weight.view(8, 3, 1, 2, 2))


def test_packed_rows_that_do_not_divide_keep_the_stored_rows(tmp_path: Path) -> None:
    q8_0 = gguf.GGMLQuantizationType.Q8_0
    key = make.array("comfy.gguf.orig_shape.w", make.I32, 2, struct.pack("<2i", 4, 8))
    path = tmp_path / "refolded.gguf"
    entries = (make.entry("w", (32,), type_id=q8_0),)
    path.write_bytes(make.gguf(pairs=(key,), entries=entries, data=bytes(34)))
    with open_weights(path) as file:
        assert file.read("w").shape == (1, 34)
        assert file.dequantize("w").shape == (4, 8)


# heads


@pytest.mark.parametrize(
    ("metadata", "expected"),
    [
        ({"num_heads": "4"}, 4),
        ({"config": json.dumps({"model": {"num_heads": 6}})}, 6),
        ({"num_heads": "4", "config": json.dumps({"model": {"num_heads": 6}})}, 4),
        ({"config": "not json"}, None),
        ({"config": "[1]"}, None),
        ({"config": json.dumps({"model": "wan"})}, None),
        ({"format": "pt"}, None),
    ],
    ids=["num_heads", "config", "both", "config_text", "config_list", "config_other", "neither"],
)
def test_num_heads_of_safetensors(
    metadata: dict[str, str], expected: int | None, tmp_path: Path
) -> None:
    path = tmp_path / "heads.safetensors"
    save_file({"w": torch.zeros(1)}, path, metadata=metadata)
    assert open_weights(path).num_heads == expected


def test_num_heads_of_gguf(small: Path, tmp_path: Path) -> None:
    assert open_weights(small).num_heads == 2
    bare = tmp_path / "bare.gguf"
    bare.write_bytes(make.gguf(pairs=(make.ARCHITECTURE,)))
    assert open_weights(bare).num_heads is None


@pytest.mark.parametrize("value", ["many", "0", "-4", "4.5", "9" * 5000])
def test_num_heads_that_is_no_number_is_refused(value: str, tmp_path: Path) -> None:
    path = tmp_path / "heads.safetensors"
    save_file({"w": torch.zeros(1)}, path, metadata={"num_heads": value})
    with pytest.raises(GGUFError, match="number of attention heads"):
        _ = open_weights(path).num_heads


# files that are not there, or not the same any more


def test_missing_file_and_folder_are_named(tmp_path: Path) -> None:
    with pytest.raises(GGUFError, match=r"gone\.gguf: the file cannot be opened \(no such file\)"):
        open_weights(tmp_path / "gone.gguf")
    with pytest.raises(GGUFError, match="this folder holds no model"):
        open_weights(tmp_path)
    with pytest.raises(GGUFError, match="cannot be opened"):
        open_weights("nul\0name.gguf")


def truncate(path: Path) -> None:
    os.truncate(path, path.stat().st_size - 1)


def replace(path: Path) -> None:
    other = path.with_name("other")
    other.write_bytes(path.read_bytes())
    stat = path.stat()
    os.utime(other, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    other.replace(path)


def rewrite(path: Path) -> None:
    stat = path.stat()
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns + 1_000_000))


@pytest.mark.parametrize("change", [truncate, replace, rewrite, Path.unlink])
@pytest.mark.parametrize("kind", ["small", "plain"])
def test_file_changed_after_opening_raises(
    kind: str, change: Callable[[Path], None], request: pytest.FixtureRequest
) -> None:
    path: Path = request.getfixturevalue(kind)
    file = open_weights(path)
    name = list(file.tensors)[-1]
    file.read(name)
    change(path)
    expected = "no such file" if change is Path.unlink else "changed or replaced"
    with pytest.raises(GGUFError, match=expected):
        file.read(name)


def test_metadata_array_of_a_changed_file_raises(small: Path) -> None:
    file = open_weights(small)
    truncate(small)
    with pytest.raises(GGUFError, match="changed or replaced"):
        file.metadata["some.words"]


def test_closed_file_and_unknown_tensor_are_refused(small: Path) -> None:
    file = open_weights(small)
    with pytest.raises(GGUFError, match="there is no tensor 'nope' in this file"):
        file.read("nope")
    with pytest.raises(GGUFError, match="there is no tensor 'nope' in this file"):
        file.dequantize("nope")
    file.close()
    with pytest.raises(GGUFError, match="after the file was closed"):
        file.dequantize("plain.weight")


def test_truncation_while_tensors_are_used_does_not_kill_the_process(tmp_path: Path) -> None:
    """What a memory-mapped reader dies of (SIGBUS), in a process of its own."""
    path = tmp_path / "big.safetensors"
    save_file({"w": torch.ones(1 << 20), "x": torch.ones(1 << 20)}, path)
    root = Path(sys.modules[WeightsFile.__module__.partition(".")[0]].__file__ or "").parent
    link = tmp_path / "comfyui_multitalk"
    link.symlink_to(root, target_is_directory=True)
    code = (
        "import os, sys\n"
        "from comfyui_multitalk.wan_gguf_loader.files import open_weights\n"
        "from comfyui_multitalk.wan_gguf_loader.errors import GGUFError\n"
        "file = open_weights(sys.argv[1]); w = file.read('w')\n"
        "os.truncate(sys.argv[1], 100)\n"
        "assert w.sum() == 1 << 20\n"
        "try: file.read('x')\n"
        "except GGUFError: print('raised')\n"
    )
    run = subprocess.run(
        [sys.executable, "-c", code, str(path)],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
    )
    assert (run.returncode, run.stdout) == (0, "raised\n"), run.stderr


# damaged safetensors

BAD_SAFETENSORS: dict[str, tuple[bytes, str]] = {
    "header_length": (raw_safetensors({}, length=1 << 62), "claims 4611686018427387904 bytes"),
    "header_cut": (raw_safetensors(header_of(), bytes(32))[:40], "truncated download"),
    "header_not_json": (raw_safetensors(b"{nope}"), "header is damaged"),
    "header_not_utf8": (raw_safetensors(b'{"\xff": 1}'), "header is damaged"),
    "header_deep": (raw_safetensors(b'{"a":' + b"[" * 100_000), "header is damaged"),
    "header_long_number": (raw_safetensors(b'{"a":' + b"1" * 9000 + b"}"), "header is damaged"),
    "name_twice": (raw_safetensors(b'{"w":1,"w":2}'), "a name occurs twice"),
    "metadata_list": (raw_safetensors({"__metadata__": [1]}), "metadata is not text"),
    "metadata_number": (raw_safetensors({"__metadata__": {"a": 1}}), "metadata is not text"),
    "entry_list": (raw_safetensors({"w": [1]}), "the entry of tensor 'w' is damaged"),
    "entry_incomplete": (raw_safetensors({"w": {"dtype": "F32"}}), "entry of tensor 'w'"),
    "dtype_unknown": (raw_safetensors(header_of(dtype="F4"), bytes(32)), "unknown type 'F4'"),
    "dtype_list": (raw_safetensors(header_of(dtype=[]), bytes(32)), "unknown type '[]'"),
    "shape_text": (raw_safetensors(header_of(shape="8"), bytes(32)), "shape or position"),
    "shape_negative": (raw_safetensors(header_of(shape=[-2, -4]), bytes(32)), "shape or position"),
    "shape_bool": (raw_safetensors(header_of(shape=[True]), bytes(32)), "shape or position"),
    "shape_float": (raw_safetensors(header_of(shape=[8.0]), bytes(32)), "shape or position"),
    "offsets_3": (raw_safetensors(header_of(data_offsets=[0, 1, 2])), "shape or position"),
    "offsets_backwards": (raw_safetensors(header_of(data_offsets=[32, 0])), "spans -32"),
    "bytes_wrong": (raw_safetensors(header_of(shape=[9]), bytes(32)), "needs 36 bytes"),
    "data_cut": (raw_safetensors(header_of(), bytes(31)), "truncated download: tensor 'w' (F32)"),
    "gap": (raw_safetensors(header_of(data_offsets=[4, 36]), bytes(36)), "leave a gap"),
    "overlap": (
        raw_safetensors({**header_of(), "v": header_of()["w"]}, bytes(32)),
        "tensors overlap",
    ),
    "trailing": (raw_safetensors(header_of(), bytes(33)), "1 bytes belong to no tensor"),
}


@pytest.mark.parametrize("case", BAD_SAFETENSORS)
def test_bad_safetensors_gives_one_clear_line(case: str, tmp_path: Path) -> None:
    content, expected = BAD_SAFETENSORS[case]
    path = tmp_path / "model.safetensors"
    path.write_bytes(content)
    with pytest.raises(GGUFError) as caught:
        open_weights(path)
    message = str(caught.value)
    assert expected in message
    assert message.startswith("model.safetensors: ")
    assert "\n" not in message
    assert len(message) < 400


def test_safetensors_cut_at_every_byte_gives_only_our_error(tmp_path: Path) -> None:
    content = raw_safetensors(header_of(), bytes(32))
    path = tmp_path / "cut.safetensors"
    for size in range(len(content)):
        path.write_bytes(content[:size])
        with pytest.raises(GGUFError):
            open_weights(path)
    path.write_bytes(content)
    assert open_weights(path).shapes == {"w": (2, 4)}
