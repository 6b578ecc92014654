"""The video autoencoder: Wan's and diffusers' names, prefixes of checkpoints, and eight bits."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from typing import Final

import torch

from . import gguf_file, values
from .codecs import E4M3, Codec, plain, scaled
from .files import Refused, Variant
from .safetensors_rows import DTYPES, HALF, Build, one_file
from .spellings import diffusers_vae
from .stored import Stored, encode, is_weight

_FAMILY: Final = "vae"
_WAN22 = {
    "decoder.conv1.weight": torch.ones(8, 48, 3, 3, 3),
    "encoder.conv1.weight": torch.ones(8, 12, 3, 3, 3),
}
_IMAGE = {"decoder.conv_in.weight": torch.ones(8, 4, 3, 3)}


def released(codec: Codec, *, rest: torch.dtype = HALF) -> Stored:
    """Store the autoencoder under Wan's names."""
    return encode(values.autoencoder(), codec, rest=rest, layers=is_weight)


def rows() -> Iterator[Variant]:
    """Give all variants."""
    for name, build in _files().items():
        yield one_file(_FAMILY, name, build)
    for type in ("F16", "F32"):
        yield gguf_file.variant(_FAMILY, f"GGUF {type} (calcuis)", values.autoencoder, type)
    refused: dict[str, tuple[str, Build]] = {
        "scale of an unknown name": ("no known use", lambda: released(scaled(E4M3, ".scaling"))),
        "an image VAE": ("image VAE", lambda: Stored(_IMAGE, {})),
        "Wan2.2's VAE": ("48 channels", lambda: Stored(_WAN22, {})),
    }
    for name, (words, build) in refused.items():
        yield one_file(_FAMILY, name, build, outcome=Refused(words))


def _files() -> dict[str, Build]:
    half = functools.partial(released, plain(HALF))
    found: dict[str, Build] = {
        f"Wan's names, {name}": lambda d=dtype: released(plain(d), rest=d)
        for name, dtype in DTYPES.items()
    }
    for prefix in ("model.", "first_stage_model.", "vae."):
        found[f"prefix `{prefix}`"] = lambda p=prefix: half().prefixed(p)
    found |= {
        "diffusers' names": lambda: half().renamed(diffusers_vae),
        "diffusers' names, prefix `vae.`": lambda: half().renamed(diffusers_vae).prefixed("vae."),
        "plain fp8 e4m3": lambda: released(plain(E4M3)),
        "scaled fp8, a scale for each output": lambda: released(
            scaled(E4M3, ".scale_weight", "row")
        ),
        "in a checkpoint beside the base": _checkpoint,
    }
    return found


def _checkpoint() -> Stored:
    base = encode(values.base(), plain(HALF)).prefixed("model.diffusion_model.")
    own = released(plain(HALF))
    return base.joined(own.prefixed("first_stage_model."))._replace(values=own.values)
