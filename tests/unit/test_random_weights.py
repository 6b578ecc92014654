"""Random weights of the 14B smoke run: they read back and are of order one."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from comfyui_multitalk.dev.benchmarks.random_weights import (
    RandomPool,
    small_sizes,
    write_files,
    write_safetensors,
)
from comfyui_multitalk.wan_gguf_loader.dequant import dequantize
from comfyui_multitalk.wan_gguf_loader.files import open_weights


@pytest.fixture(scope="module")
def pool() -> RandomPool:
    return RandomPool(0)


@pytest.mark.parametrize("fan_in", [256, 5120, 13824])
def test_random_q4_k_bytes_decode_to_the_variance_of_one_over_fan_in(
    pool: RandomPool, fan_in: int
) -> None:
    packed = pool.packed("blocks.0.ffn.0.weight", (64, fan_in))
    weight = dequantize(packed, "Q4_K", (64, fan_in))
    assert weight.isfinite().all()
    assert float(weight.std()) * fan_in**0.5 == pytest.approx(1, abs=0.1)
    assert abs(float(weight.mean())) < 0.15 * float(weight.std())


def test_random_plain_values_follow_the_rule_beyond_the_end_of_the_pool(pool: RandomPool) -> None:
    weight = pool.plain("audio_proj.proj3.weight", (24576, 1024), std={})
    assert weight.shape == (24576, 1024)
    assert float(weight.std()) * 1024**0.5 == pytest.approx(1, abs=0.01)
    assert torch.equal(pool.plain("norm_q.weight", (8,), std={}), torch.ones(8))


def test_streamed_safetensors_file_reads_back(tmp_path: Path) -> None:
    tensors = {"a": torch.arange(3).to(torch.bfloat16), "b": torch.arange(4.0).view(2, 2)}
    plan = {name: (value.dtype, tuple(value.shape)) for name, value in tensors.items()}
    path = tmp_path / "two.safetensors"
    write_safetensors(path, plan, tensors.values(), metadata={"num_heads": "4"})
    with open_weights(path) as file:
        assert file.num_heads == 4
        for name, value in tensors.items():
            assert torch.equal(file.read(name), value), name


def test_the_files_of_a_video_are_written_and_read_back(tmp_path: Path) -> None:
    files = write_files(tmp_path, small_sizes(), seed=0)
    with open_weights(files.base) as base, open_weights(files.text_encoder) as text_encoder:
        assert base.num_heads == 4
        assert text_encoder.shapes["spiece_model"]
