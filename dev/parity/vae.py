"""Compare the video VAE with recorded encodings and decodings (`vae` files)."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from ...standalone.vae import WanVAE, load_vae
from ...wan_gguf_loader.files import open_weights
from .golden import GoldenFile, Row, require_rows, row

_TOLERANCE = 5e-5
_BF16_TOLERANCE = 0.15
"""Of latents and frames of unit size in bfloat16, whose steps near 1 are 0.004."""


def compare(path: Path, *, dtype: torch.dtype = torch.float32) -> list[Row]:
    """Compare every case of a recorded VAE file, of any width.

    Args:
        path: Weights and, per case, `in.<case>.video`, `out.<case>.encode`, `out.<case>.decode` ...
        dtype: Type to compute in; bfloat16 has a larger tolerance.

    Returns:
        One row per recorded result.
    """
    golden = GoldenFile(path)
    with open_weights(path) as file:
        vae = load_vae(file, device=torch.device("cpu"), dtype=dtype)
    tolerance = _TOLERANCE if dtype == torch.float32 else _BF16_TOLERANCE
    rows = []
    for name in sorted(golden.tensors):
        if name.startswith("out."):
            ours, theirs = _ours(vae, golden, name), golden.get(name)
            rows.append(row(name, ours[0], theirs, tolerance=tolerance))
    rows += [
        row("const.mean", vae.mean, golden.get("const.mean"), tolerance=0),
        row("const.std", vae.std, golden.get("const.std"), tolerance=0),
    ]
    return require_rows(rows, golden)


def _ours(vae: WanVAE, golden: GoldenFile, name: str) -> Tensor:
    _, case, result = name.split(".")
    if result == "encode":
        return vae.encode(golden.get(f"in.{case}.video")[None])
    if result == "encode_first5_zero_padded":
        video = golden.get(f"in.{case}.video").clone()
        video[:, 5:] = 0
        return vae.encode(video[None])
    if result == "decode_of_latent":
        return vae.decode(golden.get(f"in.{case}.latent")[None])
    latents = golden.get(f"out.{case}.encode")[None]
    if result == "decode":
        return vae.decode(latents)
    if result == "decode_raw":
        return _decode_unclamped(vae, latents)
    raise ValueError(f"{golden.path.name}: the result {name!r} is of no known kind.")


def _decode_unclamped(vae: WanVAE, latents: Tensor) -> Tensor:
    """Decode and give the decoder's values before the clamp, by latent frame."""
    said: list[Tensor] = []
    hook = vae.model.decoder.register_forward_hook(lambda *call: said.append(call[2]))
    try:
        vae.decode(latents)
    finally:
        hook.remove()
    return torch.cat(said, dim=2).float()
