"""The GGUF header parser reads good files as `gguf` does."""

from __future__ import annotations

import logging
import struct
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch

from comfyui_multitalk.tests.support import gguf_bytes as make
from comfyui_multitalk.wan_gguf_loader.files import open_weights
from comfyui_multitalk.wan_gguf_loader.types import GGML_TYPES

U32, U64, STRING, ARRAY, BOOL = make.U32, make.U64, make.STRING, make.ARRAY, make.BOOL


def write_with_gguf(path: Path, fill: Callable[[gguf.GGUFWriter], None]) -> None:
    writer = gguf.GGUFWriter(path, "wan")
    fill(writer)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def test_header_equals_gguf_reader_for_every_type(tmp_path: Path) -> None:
    rng = np.random.default_rng(5)

    def fill(writer: gguf.GGUFWriter) -> None:
        writer.add_uint32("wan.attention.head_count", 40)
        writer.add_float32("some.scale", 0.25)
        writer.add_bool("some.flag", True)
        writer.add_array("some.words", ["a", "", "ünï"])
        writer.add_array("some.numbers", [1, -5, 7])
        writer.add_array("some.flags", [True, False])
        for kind in GGML_TYPES.values():
            packed = rng.integers(0, 255, (3, 2 * kind.bytes), dtype=np.uint8)
            raw = gguf.GGMLQuantizationType(kind.id)
            writer.add_tensor(f"{kind.name}.weight", packed, raw_dtype=raw)

    path = tmp_path / "all.gguf"
    write_with_gguf(path, fill)
    theirs = gguf.GGUFReader(path)
    ours = open_weights(path)

    assert list(ours.tensors) == [t.name for t in theirs.tensors]
    for tensor in theirs.tensors:
        info = ours.tensors[tensor.name]
        assert info.type == tensor.tensor_type.name
        assert info.shape == tuple(int(n) for n in reversed(tensor.shape))
        assert info.nbytes == tensor.n_bytes
        mine = ours.read(tensor.name).view(torch.uint8)
        assert mine.numpy().tobytes() == tensor.data.tobytes()
    own_keys = {k: v for k, v in theirs.fields.items() if not k.startswith("GGUF.")}
    assert list(ours.metadata) == list(own_keys)
    for key, field in own_keys.items():
        value = ours.metadata[key]
        assert (list(value) if isinstance(value, tuple) else value) == field.contents()


def test_five_dimensional_patch_embedding_keeps_its_shape(tmp_path: Path) -> None:
    weight = np.random.default_rng(1).normal(0, 1, (8, 36, 1, 2, 2)).astype(np.float32)
    path = tmp_path / "wan.gguf"
    write_with_gguf(path, lambda w: w.add_tensor("patch_embedding.weight", weight))
    opened = open_weights(path)
    assert opened.shapes == {"patch_embedding.weight": (8, 36, 1, 2, 2)}
    assert np.array_equal(opened.read("patch_embedding.weight").numpy(), weight)


def test_orig_shape_gives_the_shape_back(tmp_path: Path) -> None:
    path = tmp_path / "refolded.gguf"
    shape = make.array("comfy.gguf.orig_shape.w", make.I32, 2, struct.pack("<2i", 2, 4))
    path.write_bytes(make.gguf(pairs=(shape,), entries=(make.entry("w", (8,)),), data=bytes(32)))
    assert open_weights(path).shapes == {"w": (2, 4)}


@pytest.mark.parametrize("version", [2, 3])
def test_small_file_of_both_versions_is_read(version: int, tmp_path: Path) -> None:
    path = tmp_path / "small.gguf"
    content = make.small_file()
    path.write_bytes(content[:4] + struct.pack("<I", version) + content[8:])
    opened = open_weights(path)
    assert opened.shapes == {"plain.weight": (2, 4), "packed.weight": (3, 32)}
    assert opened.metadata["some.numbers"] == (1, -2, 3)
    assert opened.metadata["some.words"] == ("one", "zwölf")
    assert opened.metadata["a.flag"] is True


def test_alignment_of_the_file_is_used(tmp_path: Path) -> None:
    pairs = (make.pair("general.alignment", U32, struct.pack("<I", 256)),)
    data = struct.pack("<8f", *range(8))
    path = tmp_path / "aligned.gguf"
    path.write_bytes(
        make.gguf(pairs=pairs, entries=(make.entry("w", (8,)),), data=data, alignment=256)
    )
    assert open_weights(path).read("w").tolist() == list(range(8))


def test_tensor_without_dimensions_is_a_number(tmp_path: Path) -> None:
    path = tmp_path / "scalar.gguf"
    path.write_bytes(
        make.gguf(entries=(make.entry("logit_scale", ()),), data=struct.pack("<f", 2.5))
    )
    assert open_weights(path).read("logit_scale").item() == 2.5


def test_vocabulary_arrays_are_not_read_when_opening(tmp_path: Path) -> None:
    words = [f"token{number}" for number in range(100_000)]

    def fill(writer: gguf.GGUFWriter) -> None:
        writer.add_array("tokenizer.ggml.scores", [0.5] * 300_000)
        writer.add_array("tokenizer.ggml.tokens", words)
        writer.add_tensor("w", np.zeros(8, np.float32))

    path = tmp_path / "vocabulary.gguf"
    write_with_gguf(path, fill)
    tracemalloc.start()
    opened = open_weights(path)
    _, peak_bytes = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak_bytes < path.stat().st_size * 2  # as objects they take ten times the file
    assert opened.metadata["tokenizer.ggml.tokens"] == tuple(words)
    assert opened.metadata["tokenizer.ggml.scores"] == (0.5,) * 300_000


def test_bytes_of_no_tensor_are_warned_of(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "trailing.gguf"
    path.write_bytes(make.gguf(entries=(make.entry("w", (8,)),), data=bytes(32 + (2 << 20))))
    with caplog.at_level(logging.WARNING):
        open_weights(path)
    assert "2097152 bytes belong to no tensor" in caplog.text
