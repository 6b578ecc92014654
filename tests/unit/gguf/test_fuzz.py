"""A short run of damaged files, and one file for each kind of damage that once got through."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest

from comfyui_multitalk.dev.fuzz.loads import Kind
from comfyui_multitalk.dev.fuzz.run import run_cases, seeds
from comfyui_multitalk.wan_gguf_loader.errors import GGUFError
from comfyui_multitalk.wan_gguf_loader.files import open_weights
from comfyui_multitalk.wan_gguf_loader.lora_settings import read_settings

_EMPTY = {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]}


def _write(path: Path, header: dict[str, Any], data: bytes = b"") -> Path:
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + data)
    return path


@pytest.mark.parametrize("kind", ["gguf", "safetensors"])
def test_damaged_files_load_or_are_refused(kind: Kind, tmp_path: Path) -> None:
    found = run_cases(
        seeds(kind, tmp_path, most=8), seed=3, count=60, until=time.monotonic() + 60, kept=tmp_path
    )
    assert found["cases"] == 60
    assert not [what for what in found["findings"] if what.startswith(("foreign", "large"))]


_HEADERS: dict[str, tuple[dict[str, Any], str]] = {
    "product_of_8000_digits": ({"a": {**_EMPTY, "shape": [10**4000] * 2}}, "is damaged"),
    "empty_with_2^124_strides": ({"a": {**_EMPTY, "shape": [0, 1 << 62, 1 << 62]}}, "is damaged"),
    "surrogate": ({"\ud800": _EMPTY}, "surrogates"),
    "long_name": ({"a" * 513: _EMPTY}, "513 characters"),
    "many_values": ({"a": [[]] * (1 << 19)}, "values"),
    "scale_of_empty_weight": (
        {
            "a.weight": {"dtype": "F8_E4M3", "shape": [0, 4], "data_offsets": [0, 0]},
            "a.weight_scale": {"dtype": "F32", "shape": [1, 2], "data_offsets": [0, 8]},
        },
        "does not fit",
    ),
}


@pytest.mark.parametrize(("header", "words"), _HEADERS.values(), ids=_HEADERS.keys())
def test_damaged_header_is_refused(header: dict[str, Any], words: str, tmp_path: Path) -> None:
    size = max((e["data_offsets"][1] for e in header.values() if isinstance(e, dict)), default=0)
    with pytest.raises(GGUFError, match=words) as caught:
        open_weights(_write(tmp_path / "a.safetensors", header, bytes(size)))
    str(caught.value).encode()


def test_header_length_of_100_mb_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    with path.open("wb") as file:
        file.write((99_000_000).to_bytes(8, "little") + b"{")
        file.truncate(100_000_000)
    with pytest.raises(GGUFError, match="are read: no model needs that"):
        open_weights(path)


def test_index_with_an_empty_name_is_refused(tmp_path: Path) -> None:
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"a": ""}}))
    with pytest.raises(GGUFError, match="names no shards"):
        open_weights(index)


def test_alpha_of_400_digits_is_refused(tmp_path: Path) -> None:
    header = {"a": _EMPTY, "__metadata__": {"x": json.dumps({"lora_alpha": 10**400})}}
    with (
        open_weights(_write(tmp_path / "a.safetensors", header)) as file,
        pytest.raises(GGUFError, match="lora_alpha"),
    ):
        read_settings(file)
