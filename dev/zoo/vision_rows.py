"""The CLIP vision tower: `transformers`' names, those of open-clip and of Wan's own `clip.py`."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final, Literal

import torch
from torch import Tensor

from . import gguf_file, values
from .codecs import E4M3, Codec, comfy, plain, scaled, with_descriptions
from .files import Refused, Variant
from .safetensors_rows import DTYPES, HALF, Build, as_index, one_file, sharded
from .spellings import open_clip
from .stored import Stored, encode, is_matrix, is_weight

_FAMILY: Final = "clip_vision"
_PROJECTION = "visual_projection.weight"
_SCALED = scaled(E4M3, ".scale_weight")
_TEXT_TOWER = {
    "text_model.embeddings.token_embedding.weight": (7, 8),
    "text_model.encoder.layers.0.self_attn.q_proj.weight": (8, 8),
    "logit_scale": (),
}
_OPEN_TEXT_TOWER = {
    "token_embedding.weight": (7, 8),
    "transformer.resblocks.0.attn.in_proj_weight": (24, 8),
    "text_projection": (8, 8),
    "logit_scale": (),
}
_WAN_TEXT_TOWER = {
    "textual.model.embeddings.word_embeddings.weight": (7, 8),
    "textual.head.0.weight": (8, 8),
    "log_scale": (),
}


def released(codec: Codec, *, rest: torch.dtype = HALF) -> Stored:
    """Store the tower as ComfyUI's files do."""

    def is_layer(name: str, value: Tensor) -> bool:
        return is_matrix(name, value) and "embedding" not in name

    stored = encode(values.clip_vision(), codec, rest=rest, layers=is_layer)
    return _unprojected(stored.renamed(_transformers))


def rows() -> Iterator[Variant]:
    """Give all variants."""
    for name, build in _transformers_files().items():
        yield one_file(_FAMILY, name, build)
    for name, codec in {"fp16": plain(HALF), "fp8": plain(E4M3), "scaled fp8": _SCALED}.items():
        yield one_file(
            _FAMILY, f"open-clip visual tower (Kijai), {name}", lambda c=codec: _open(c, "wan")
        )
        yield one_file(_FAMILY, f"open-clip (LAION), {name}", lambda c=codec: _open(c, "laion"))
    yield gguf_file.variant(_FAMILY, "GGUF F16, `transformers`' names", _tower, "F16")
    towers: dict[str, Build] = {
        "open-clip with its text tower (Wan's file)": lambda: _with(
            _open(plain(HALF), "wan"), _WAN_TEXT_TOWER
        ),
        "open-clip (LAION) with its text tower": lambda: _with(
            _open(plain(HALF), "laion"), _OPEN_TEXT_TOWER
        ),
    }
    for name, build in towers.items():
        yield one_file(_FAMILY, name, build)
    yield sharded(
        _FAMILY, "`transformers` in three shards, index chosen", lambda: released(plain(HALF)),
        as_index,
    )  # fmt: skip
    yield one_file(
        _FAMILY,
        "scale of an unknown name",
        lambda: released(scaled(E4M3, ".scaling")),
        outcome=Refused("no known use"),
    )


def _transformers_files() -> dict[str, Build]:
    half = plain(HALF)
    marker = {"scaled_fp8": torch.zeros(0, dtype=E4M3)}
    found: dict[str, Build] = {
        f"`transformers`' names, {name}": lambda d=dtype: released(plain(d), rest=d)
        for name, dtype in DTYPES.items()
    }
    found |= {
        "scaled fp8 of every weight": lambda: _every(_SCALED),
        "scaled fp8": lambda: released(_SCALED).plus(**marker),
        "plain fp8 e4m3": lambda: released(plain(E4M3)),
        "with the text tower": lambda: _with(released(half), _TEXT_TOWER),
        "without `post_layernorm`": lambda: _without(released(half), "post_layernorm"),
        "without `visual_projection`": lambda: _without(released(half), "visual_projection"),
        "prefix `image_encoder.`": lambda: released(half).prefixed("image_encoder."),
    }
    for format in ("float8_e4m3fn", "int8_tensorwise"):
        codec = with_descriptions(comfy(format))
        found[f"`comfy_quant` {format}"] = lambda c=codec: released(c)
    return found


def _every(codec: Codec) -> Stored:
    stored = encode(values.clip_vision(), codec, layers=is_weight)
    return _unprojected(stored.renamed(_transformers))


def _transformers(name: str) -> str:
    return name if name.startswith("visual_projection") else f"vision_model.{name}"


def _open(codec: Codec, kind: Literal["wan", "laion"]) -> Stored:
    return _unprojected(open_clip(values.clip_vision(), codec, kind=kind))


def _unprojected(stored: Stored) -> Stored:
    """Expect no projection: nothing of this project reads it."""
    used = {name: v for name, v in stored.values.items() if not name.startswith("visual_proj")}
    return stored._replace(values=used)


def _tower() -> values.Values:
    return {name: v for name, v in values.clip_vision().items() if name != _PROJECTION}


def _with(stored: Stored, tower: dict[str, tuple[int, ...]]) -> Stored:
    return stored.plus(**{name: torch.ones(shape) for name, shape in tower.items()})


def _without(stored: Stored, part: str) -> Stored:
    return Stored(
        {name: tensor for name, tensor in stored.tensors.items() if part not in name},
        {name: value for name, value in stored.values.items() if part not in name},
    )
