"""The VAE built by us against the official one's recorded encodings and decodings."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from comfyui_multitalk.dev.parity.vae import compare

GOLDEN = Path(__file__).parent / "golden" / "vae_tiny.safetensors"


def test_vae_matches_upstream() -> None:
    rows = compare(GOLDEN)
    assert len(rows) == 10
    assert all(row.ok for row in rows), [row for row in rows if not row.ok]


def test_vae_in_bfloat16_matches_upstream() -> None:
    rows = compare(GOLDEN, dtype=torch.bfloat16)
    assert all(row.ok for row in rows), [row for row in rows if not row.ok]
    assert any(row.error > 1e-3 for row in rows)


@pytest.mark.parametrize(
    ("changed", "failing"),
    [
        ("out.a.encode", {"out.a.encode", "out.a.decode", "out.a.decode_raw"}),
        ("out.b.decode_raw", {"out.b.decode_raw"}),
        ("const.mean", {"const.mean"}),
        (
            "decoder.upsamples.7.resample.1.bias",
            {"out.a.decode", "out.a.decode_raw", "out.a.decode_of_latent"}
            | {"out.b.decode", "out.b.decode_raw"},
        ),
    ],
)
def test_vae_compare_sees_a_change(tmp_path: Path, changed: str, failing: set[str]) -> None:
    with safe_open(GOLDEN, framework="pt") as file:
        metadata = file.metadata()
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    tensors[changed] = tensors[changed] + 0.01
    save_file(tensors, tmp_path / "changed.safetensors", metadata=metadata)
    rows = compare(tmp_path / "changed.safetensors")
    assert {row.group for row in rows if not row.ok} == failing
