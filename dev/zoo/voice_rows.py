"""Wav2Vec2: its weight norm in three forms, heads of its training, and forms of eight bits."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from typing import Final

import torch
from torch import Tensor

from . import values
from .codecs import E4M3, E5M2, Codec, comfy, plain, scaled, with_descriptions
from .files import Refused, Variant
from .safetensors_rows import DTYPES, HALF, Build, as_index, one_file, sharded
from .stored import Stored, encode, is_matrix, is_weight

_FAMILY: Final = "wav2vec2"
_POSITION = "encoder.pos_conv_embed.conv"
_PREFIX = "wav2vec2."
_TOLERANCE = 1e-6  # torch multiplies the weight norm out in another order
_TRAINING = {
    "quantizer.codevectors": torch.ones(1, 8, 4),
    "quantizer.weight_proj.weight": torch.ones(8, 32),
    "project_hid.weight": torch.ones(4, 32),
    "project_q.bias": torch.ones(4),
}
_WHISPER = {
    "encoder.layers.0.fc1.weight": torch.ones(4, 4),
    "encoder.conv1.weight": torch.ones(4, 80, 3),
}


def released(
    codec: Codec,
    *,
    rest: torch.dtype = HALF,
    layers: Callable[[str, Tensor], bool] = is_matrix,
) -> Stored:
    """Store Wav2Vec2 as chinese-wav2vec2-base has it: a prefix, and `weight_g` and `weight_v`."""
    stored = encode(values.wav2vec2(), codec, layers=layers, rest=rest)
    decoded = dict(stored.values)
    decoded.pop("masked_spec_embed")  # only training uses it
    g, v = decoded.pop(f"{_POSITION}.weight_g"), decoded.pop(f"{_POSITION}.weight_v")
    decoded[f"{_POSITION}.weight"] = g * v / v.norm(dim=(0, 1), keepdim=True)
    return stored._replace(values=decoded).prefixed(_PREFIX)


def rows() -> Iterator[Variant]:
    """Give all variants."""
    for name, build in _files().items():
        yield one_file(_FAMILY, name, build, tolerance=_TOLERANCE)
    yield sharded(
        _FAMILY, "three shards, index chosen", lambda: released(plain(HALF)), as_index,
        tolerance=_TOLERANCE,
    )  # fmt: skip
    refused: dict[str, tuple[str, Build]] = {
        "scale of an unknown name": ("no known use", lambda: released(scaled(E4M3, ".scaling"))),
        "Whisper": ("Whisper", lambda: Stored(_WHISPER, {})),
    }
    for name, (words, build) in refused.items():
        yield one_file(_FAMILY, name, build, outcome=Refused(words))


def _files() -> dict[str, Build]:
    half = functools.partial(released, plain(HALF))
    found: dict[str, Build] = {
        f"chinese-wav2vec2-base, {name}": lambda d=dtype: released(plain(d), rest=d)
        for name, dtype in DTYPES.items()
    }
    comfy_fp8 = with_descriptions(comfy("float8_e4m3fn"))
    found |= {
        "without prefix": lambda: _bare(half()),
        "prefix `model.wav2vec2.`": lambda: half().prefixed("model."),
        "weight norm as `parametrizations.weight.original0/1`": lambda: _parametrized(half()),
        "weight norm folded into `weight`": lambda: _folded(half()),
        "weight norm folded, without prefix": lambda: _bare(_folded(half())),
        "with the heads of its training": lambda: half().plus(**_TRAINING),
        "with a CTC head": lambda: half().plus(**{"lm_head.weight": torch.ones(4, 32)}),
        "scaled fp8 of every weight": lambda: released(
            scaled(E4M3, ".scale_weight"), layers=is_weight
        ),
        "scaled fp8": lambda: released(scaled(E4M3, ".scale_weight")),
        "scaled fp8, a scale for each row": lambda: released(scaled(E4M3, ".weight_scale", "row")),
        "plain fp8 e5m2": lambda: released(plain(E5M2)),
        "`comfy_quant` float8_e4m3fn": lambda: released(comfy_fp8),
    }
    return found


def _bare(stored: Stored) -> Stored:
    return stored.renamed(lambda name: name.removeprefix(_PREFIX))


def _parametrized(stored: Stored) -> Stored:
    ends = {"weight_g": "original0", "weight_v": "original1"}

    def rename(name: str) -> str:
        for old, new in ends.items():
            name = name.replace(old, f"parametrizations.weight.{new}")
        return name

    return stored.renamed(rename)


def _folded(stored: Stored) -> Stored:
    name = f"{_POSITION}.weight"
    folded = stored.values[name].half()
    tensors = {n: t for n, t in stored.tensors.items() if not n.startswith(_PREFIX + name)}
    return Stored({**tensors, _PREFIX + name: folded}, {**stored.values, name: folded.float()})
