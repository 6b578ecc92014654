"""The GGUF header parser refuses bad files, each with one clear sentence."""

from __future__ import annotations

import struct
import tracemalloc
from pathlib import Path

import pytest

from comfyui_multitalk.tests.support import gguf_bytes as make
from comfyui_multitalk.wan_gguf_loader.errors import GGUFError
from comfyui_multitalk.wan_gguf_loader.files import open_weights

U32, U64, STRING, ARRAY, BOOL = make.U32, make.U64, make.STRING, make.ARRAY, make.BOOL
F32_8 = bytes(32)  # 8 float32 weights
KEY = make.pair("general.architecture", STRING, make.text("wan"))


def alignment(kind: int, payload: bytes) -> bytes:
    return make.gguf(pairs=(make.pair("general.alignment", kind, payload),))


def one(**fields: object) -> bytes:
    """A file of one tensor of 8 float32 weights, with some field of its entry changed."""
    dims = fields.pop("dims", (8,))
    return make.gguf(entries=(make.entry("w", dims, **fields),), data=F32_8)


def with_orig_shape(*dims: int, kind: int = make.I32) -> bytes:
    code = {make.I32: "i", STRING: ""}[kind]
    payload = struct.pack(f"<{len(dims)}{code}", *dims) if code else make.text("8")
    pairs = (make.array("comfy.gguf.orig_shape.w", kind, len(dims), payload),)
    return make.gguf(pairs=pairs, entries=(make.entry("w", (8,)),), data=F32_8)


BAD_FILES: dict[str, tuple[bytes, str]] = {
    # another kind of file
    "empty": (b"", "the file is empty"),
    "lfs_pointer": (b"version https://git-lfs.github.com/spec/v1\noid sha256:0", "git lfs pull"),
    "html": (b"<!DOCTYPE html><html><body>404</body></html>", "web page: the download failed"),
    "html_after_newline": (b"\n<html lang=en>", "web page: the download failed"),
    "json": (b'{"error": "Repository not found"}', "JSON text, not weights"),
    "zip_pickle": (b"PK\x03\x04" + bytes(40), "PyTorch pickle"),
    "pickle": (b"\x80\x02}q\x00.", "Python pickle"),
    "gzip": (b"\x1f\x8b\x08" + bytes(30), "gzip archive"),
    "ggml": (b"lmgg" + bytes(40), "legacy GGML"),
    "ggjt": (b"tjgg" + bytes(40), "legacy GGJT"),
    "big_endian_magic": (b"FUGG" + bytes(40), "big-endian"),
    "noise": (b"\xde\xad\xbe\xef" * 10, "neither GGUF nor safetensors"),
    # fixed part
    "magic_only": (b"GGUF", "truncated download"),
    "below_24_bytes": (b"GGUF" + struct.pack("<IQ", 3, 1), "truncated download"),
    "version_0": (make.gguf(version=0), "GGUF version 0 is not supported"),
    "version_1": (make.gguf(version=1), "GGUF version 1 is not supported"),
    "version_4": (make.gguf(version=4), "GGUF version 4 is not supported"),
    "version_big_endian": (make.gguf(version=3 << 24), "big-endian"),
    "tensor_count_2^40": (make.gguf(num_entries=1 << 40), "claims 1099511627776 tensors"),
    "tensor_count_2^64-1": (make.gguf(num_entries=(1 << 64) - 1), "tensors, too many"),
    "tensor_count_over_size": (make.gguf(num_entries=2), "claims 2 tensors, too many"),
    "tensor_count_65537": (
        make.gguf(num_entries=65_537, data=bytes(32 * 65_537)),
        "claims 65537 tensors, too many",
    ),
    "key_count_2^63": (make.gguf(num_pairs=1 << 63), "metadata keys, too many"),
    "key_count_over_size": (make.gguf(num_pairs=9), "claims 9 metadata keys, too many"),
    "key_missing": (make.gguf(pairs=(KEY,), num_pairs=2), "names must not be empty"),
    # strings
    "key_length_2^60": (
        make.gguf(pairs=(make.text("", length=1 << 60) + bytes(8),)),
        "at most 65535 are allowed",
    ),
    "key_past_end": (
        make.gguf(pairs=(make.text("k", length=60_000) + bytes(8),)),
        "a metadata key at byte 32 needs 60000 bytes",
    ),
    "key_empty": (make.gguf(pairs=(make.pair("", U32, bytes(4)),)), "names must not be empty"),
    "key_nul": (make.gguf(pairs=(make.pair("a\0b", U32, bytes(4)),)), "NUL"),
    "key_not_utf8": (
        make.gguf(pairs=(make.pair(b"ab\xff", U32, bytes(4)),)),
        "not valid UTF-8 at byte 34",
    ),
    "key_twice": (make.gguf(pairs=(KEY, KEY)), "'general.architecture' occurs twice"),
    "string_2^62": (
        make.gguf(pairs=(make.pair("k", STRING, make.text("", length=1 << 62)),)),
        "at most 16777216 are allowed",
    ),
    "string_past_end": (
        make.gguf(pairs=(make.pair("k", STRING, make.text("", length=5000)),)),
        "the value of 'k' at byte 45 needs 5000 bytes",
    ),
    "string_not_utf8": (
        make.gguf(pairs=(make.pair("k", STRING, make.text(b"\xc3\x28")),)),
        "not valid UTF-8",
    ),
    # values
    "value_type_13": (make.gguf(pairs=(make.pair("k", 13, bytes(8)),)), "unknown type 13"),
    "value_type_2^31": (make.gguf(pairs=(make.pair("k", 1 << 31, bytes(8)),)), "unknown type"),
    "value_cut": (make.gguf(pairs=(make.pair("k", U64, b"\1"),), alignment=1), "needs 8 bytes"),
    "bool_7": (make.gguf(pairs=(make.pair("k", BOOL, b"\7"),)), "is the bool 7"),
    "architecture_number": (
        make.gguf(pairs=(make.pair("general.architecture", U32, bytes(4)),)),
        "general.architecture is not a string",
    ),
    # arrays
    "array_2^40_bytes": (make.gguf(pairs=(make.array("a", 0, 1 << 40),)), "1099511627776 bytes"),
    "array_wraps_u64": (make.gguf(pairs=(make.array("a", U64, 1 << 61),)), "cut short or damaged"),
    "array_2^40_strings": (
        make.gguf(pairs=(make.array("a", STRING, 1 << 40),)),
        "needs 8796093022208 bytes",
    ),
    "array_string_past_end": (
        make.gguf(pairs=(make.array("a", STRING, 1, make.text("x", length=1 << 50)),)),
        "the array 'a'",
    ),
    "array_nested": (
        make.gguf(pairs=(make.array("a", ARRAY, 1, struct.pack("<IQ", 0, 0)),)),
        "nested arrays",
    ),
    "array_element_type": (make.gguf(pairs=(make.array("a", 77, 1),)), "unknown element type 77"),
    # alignment
    "alignment_0": (alignment(U32, struct.pack("<I", 0)), "general.alignment is 0"),
    "alignment_3": (alignment(U32, struct.pack("<I", 3)), "general.alignment is 3"),
    "alignment_48": (alignment(U32, struct.pack("<I", 48)), "general.alignment is 48"),
    "alignment_2^31": (alignment(U32, struct.pack("<I", 1 << 31)), "general.alignment is"),
    "alignment_string": (alignment(STRING, make.text("32")), "general.alignment is '32'"),
    "alignment_bool": (alignment(BOOL, b"\1"), "general.alignment is True"),
    # tensor entries
    "name_empty": (make.gguf(entries=(make.entry("", (8,)),), data=F32_8), "must not be empty"),
    "name_nul": (make.gguf(entries=(make.entry("a\0", (8,)),), data=F32_8), "NUL"),
    "name_too_long": (
        make.gguf(entries=(make.entry("n" * 513, (8,)),), data=F32_8),
        "a tensor name at byte 32 claims 513 bytes",
    ),
    "name_not_utf8": (
        make.gguf(entries=(make.entry(b"\xff", (8,)),), data=F32_8),
        "a tensor name is not valid UTF-8",
    ),
    "name_twice": (
        make.gguf(
            entries=(make.entry("w", (8,)), make.entry("w", (8,), offset=32)), data=F32_8 * 2
        ),
        "'w' occurs twice",
    ),
    "dims_9": (one(dims=(1,) * 9), "claims 9 dimensions"),
    "dims_2^32-1": (one(num_dims=(1 << 32) - 1), "claims 4294967295 dimensions"),
    "dims_cut": (
        make.gguf(entries=(make.entry("w", (), num_dims=8),), data=b""),
        "the shape of 'w'",
    ),
    "dim_0": (one(dims=(8, 0)), "a dimension of 0"),
    "dims_wrap_u64": (one(dims=(4194305, 4194305, 211106198978564)), "truncated download"),
    "dim_2^64-1": (one(dims=((1 << 64) - 1,)), "truncated download"),
    "type_removed": (one(type_id=4), "removed ggml type 4"),
    "type_q8_k": (one(type_id=15), "stored as Q8_K"),
    "type_unknown": (one(type_id=999), "unknown ggml type 999"),
    "row_not_of_blocks": (one(dims=(33,), type_id=8), "rows of 33 elements, Q8_0 needs"),
    "row_not_of_blocks_0d": (one(dims=(), type_id=8), "rows of 1 elements, Q8_0 needs"),
    # positions
    "offset_unaligned": (one(offset=7), "starts at 7, a multiple of 32"),
    "offset_past_end": (one(offset=1 << 20), "truncated download: tensor 'w' (F32)"),
    "offset_2^64-32": (one(offset=(1 << 64) - 32), "truncated download: tensor 'w' (F32)"),
    "data_short_by_1": (one()[:-1], "needs the file to have 96 bytes, it has 95"),
    "data_missing": (one()[:-32], "truncated download: tensor 'w'"),
    "overlap": (
        make.gguf(
            entries=(make.entry("w", (16,)), make.entry("v", (8,), offset=32)), data=bytes(64)
        ),
        "tensors 'w' and 'v' overlap",
    ),
    "same_bytes_twice": (
        make.gguf(entries=(make.entry("w", (8,)), make.entry("v", (8,))), data=F32_8),
        "overlap",
    ),
    # what converters note
    "orig_shape_other_size": (with_orig_shape(3, 3), "orig_shape.w is (3, 3)"),
    "orig_shape_negative": (with_orig_shape(-2, -4), "orig_shape.w is (-2, -4)"),
    "orig_shape_empty": (with_orig_shape(), "orig_shape.w is ()"),
    "orig_shape_text": (with_orig_shape(1, kind=STRING), "orig_shape.w is ('8',)"),
    "split": (
        make.gguf(
            pairs=(
                make.pair("split.no", 2, struct.pack("<H", 0)),
                make.pair("split.count", 2, struct.pack("<H", 3)),
            )
        ),
        "part 1 of 3 of a split model",
    ),
    "no_patch_embedding": (
        make.gguf(entries=(make.entry("patch_embedding.bias", (8,)),), data=F32_8),
        "the 5-D fix",
    ),
    "two_copies": (
        make.gguf(
            entries=(
                make.entry("diffusion_model.w", (8,)),
                make.entry("w", (8,), offset=32),
            ),
            data=F32_8 * 2,
        ),
        "are the same tensor 'w'",
    ),
}


@pytest.mark.parametrize("case", BAD_FILES)
def test_bad_file_gives_one_clear_line(case: str, tmp_path: Path) -> None:
    content, expected = BAD_FILES[case]
    path = tmp_path / "model.gguf"
    path.write_bytes(content)
    tracemalloc.start()
    with pytest.raises(GGUFError) as caught:
        open_weights(path)
    _, peak_bytes = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak_bytes < 1 << 20
    message = str(caught.value)
    assert expected in message
    assert message.startswith("model.gguf: ")
    assert "\n" not in message
    assert len(message) < 400


def test_bad_tensor_is_named_in_the_error(tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    path.write_bytes(one()[:-1])
    with pytest.raises(GGUFError, match=r"^model\.gguf: .* tensor 'w' "):
        open_weights(path)


def test_huge_array_in_a_sparse_file_costs_nothing(tmp_path: Path) -> None:
    path = tmp_path / "sparse.gguf"
    length = 1 << 27
    with path.open("wb") as file:
        file.write(make.gguf(pairs=(make.array("a", U64, length),), alignment=1))
        file.truncate(length * 8 + 4096)
    tracemalloc.start()
    opened = open_weights(path)
    _, peak_bytes = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak_bytes < 1 << 20
    with pytest.raises(GGUFError, match="the array 'a' has 1073741824 bytes, more than"):
        opened.metadata["a"]


@pytest.mark.parametrize("length", [1 << 27, 1 << 21], ids=["2^27", "2^21"])
def test_many_empty_strings_in_a_sparse_file_are_bounded(length: int, tmp_path: Path) -> None:
    path = tmp_path / "sparse.gguf"
    with path.open("wb") as file:
        file.write(make.gguf(pairs=(make.array("a", STRING, length),), alignment=1))
        file.truncate(2 << 30)
    if length > 1 << 21:
        with pytest.raises(GGUFError, match="claims 134217728 strings"):
            open_weights(path)
    else:
        open_weights(path)


def test_header_of_many_huge_strings_is_given_up(tmp_path: Path) -> None:
    path = tmp_path / "sparse.gguf"
    size = 16 << 20
    with path.open("wb") as file:
        file.write(struct.pack("<4sIQQ", b"GGUF", 3, 0, 8))
        for number in range(8):
            file.write(make.pair(f"k{number}", STRING, make.text("", length=size)))
            file.seek(size, 1)
        file.write(b"\0")
    with pytest.raises(GGUFError, match="longer than 64 MiB"):
        open_weights(path)


def test_file_cut_at_every_byte_gives_only_our_error(tmp_path: Path) -> None:
    content = make.small_file()
    path = tmp_path / "cut.gguf"
    for size in range(len(content)):
        path.write_bytes(content[:size])
        with pytest.raises(GGUFError):
            open_weights(path)


def test_file_with_any_byte_changed_never_escapes(tmp_path: Path) -> None:
    """Every byte of the header flipped: our error, or tensors that lie inside the file."""
    content = make.small_file()
    path = tmp_path / "flipped.gguf"
    num_refused = 0
    for position in range(len(content) - 3 * 34 - 32):
        for mask in (0x01, 0x80, 0xFF):
            changed = bytearray(content)
            changed[position] ^= mask
            path.write_bytes(changed)
            try:
                opened = open_weights(path)
                dict(opened.metadata)
                for name in opened.tensors:
                    assert opened.dequantize(name).shape == opened.tensors[name].shape
            except GGUFError:
                num_refused += 1
    assert num_refused > 300
