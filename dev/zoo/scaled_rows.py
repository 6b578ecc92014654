"""Transformers in eight and four bits with scales beside the weights, in every packaging."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping

import torch
from torch import Tensor

from . import values
from .codecs import (
    E4M3,
    E5M2,
    Codec,
    Encoded,
    as_json,
    comfy,
    plain,
    scaled,
    wide,
    with_descriptions,
)
from .files import Family, Refused, Variant
from .safetensors_rows import (
    BRAIN,
    FULL,
    HALF,
    as_index,
    as_multitalk,
    one_file,
    sharded,
)
from .spellings import diffusers_wan
from .stored import Stored, encode, is_matrix, is_weight

ENDS = (".scale_weight", ".weight_scale", ".weight_scale_inv", ".weight.scale", ".weight_scales")
_ONE = torch.ones(())
_MODELS: dict[Family, Callable[[], values.Values]] = {
    "base": values.base,
    "adapter": values.adapter,
    "merged": values.transformer,
}


def stored(family: Family, codec: Codec, *, rest: torch.dtype = HALF, **marker: Tensor) -> Stored:
    """Store a transformer by a codec, and markers beside it."""
    return encode(_MODELS[family](), codec, rest=rest).plus(**marker)


def _marker(dtype: torch.dtype = E4M3, size: int = 0) -> dict[str, Tensor]:
    return {"scaled_fp8": torch.zeros(size, dtype=dtype)}


def _row(
    family: Family, name: str, codec: Codec, *, rest: torch.dtype = HALF, **m: Tensor
) -> Variant:
    return one_file(family, name, functools.partial(stored, family, codec, rest=rest, **m))


def _refused(family: Family, name: str, words: str, codec: Codec, **marker: Tensor) -> Variant:
    build = functools.partial(stored, family, codec, **marker)
    return one_file(family, name, build, outcome=Refused(words))


def rows() -> Iterator[Variant]:
    """Give all variants."""
    yield from _names()
    yield from _packagings()
    yield from _everywhere()
    yield from _comfy_quant()
    yield from _places()
    yield from _unknown()


def _names() -> Iterator[Variant]:
    """Every name of a scale, for a tensor, a row and a block."""
    for end in ENDS:
        for name, dtype in {"e4m3": E4M3, "int8": torch.int8}.items():
            yield _row("base", f"{name}, `{end}` of a tensor", scaled(dtype, end))
            yield _row("base", f"{name}, `{end}` of each row", scaled(dtype, end, "row"))
        yield _row("base", f"e4m3, `{end}` of blocks of 128", scaled(E4M3, end, "block"))
        yield _row("adapter", f"e4m3, `{end}` of a tensor", scaled(E4M3, end, "one"))
    yield _row(
        "adapter", "int8, `.weight_scale` of each row", scaled(torch.int8, ENDS[1], "column")
    )
    yield _row("merged", "int8, `.weight_scale` of each row", scaled(torch.int8, ENDS[1], "column"))
    yield _row("base", "e5m2, `.scale_weight` of a tensor", scaled(E5M2, ENDS[0]))
    yield _row("base", "bf16 with `.weight_scale` of each row", wide(BRAIN, ENDS[1]))
    yield _row("base", "fp16 with `.scale_weight` of each row", wide(HALF, ENDS[0]))
    for name, dtype in {"bf16": BRAIN, "fp16": HALF}.items():
        codec = scaled(E4M3, ENDS[1], "row", scale_dtype=dtype)
        yield _row("base", f"e4m3, `.weight_scale` in {name}", codec)


def _packagings() -> Iterator[Variant]:
    """What Comfy-Org, Kijai and LightX2V publish."""
    old = scaled(E4M3, ".scale_weight", others={".scale_input": _ONE})
    for family in ("base", "merged"):
        yield _row(
            family, "Comfy-Org `fp8_scaled` (`scaled_fp8`, `.scale_input`)", old, **_marker(size=2)
        )
    for family in _MODELS:
        for name, dtype in {"e4m3fn": E4M3, "e5m2": E5M2}.items():
            codec = scaled(dtype, ".scale_weight", "one")
            yield _row(family, f"Kijai `fp8_{name}_scaled_KJ`", codec, rest=FULL, **_marker(dtype))
    yield _row(
        "base", "Kijai `scaled_KJ` without its marker", scaled(E4M3, ENDS[0], "one"), rest=BRAIN
    )
    for family in ("base", "merged"):
        for name, dtype in {"fp8": E4M3, "int8": torch.int8}.items():
            codec = scaled(dtype, ".weight_scale", "column")
            yield _row(family, f"LightX2V {name} (`.weight_scale` of each row)", codec, rest=BRAIN)
    yield _row(
        "base",
        "DeepSeek-style blocks (`.weight_scale_inv`), bf16 rest",
        scaled(E4M3, ".weight_scale_inv", "block"),
        rest=BRAIN,
    )
    yield _row(
        "base",
        "e4m3 with `.input_scale`",
        scaled(E4M3, ".weight_scale", others={".input_scale": _ONE}),
    )


def _everywhere() -> Iterator[Variant]:
    """Scales beside every matrix, embeddings and projections too, and beside the convolution."""
    forms = {
        "scaled fp8": scaled(E4M3, ".scale_weight"),
        "int8, a scale for each row": scaled(torch.int8, ".weight_scale", "column"),
        "`comfy_quant` float8_e4m3fn": comfy("float8_e4m3fn"),
        "`comfy_quant` mxfp8": with_descriptions(comfy("mxfp8")),
    }
    for family, model in _MODELS.items():
        for name, codec in forms.items():
            yield one_file(
                family,
                f"{name}, of every matrix",
                lambda m=model, c=codec: encode(m(), c, rest=BRAIN, layers=is_matrix),
            )
    for per in ("tensor", "row"):
        codec = scaled(E4M3, ".scale_weight", per)
        yield one_file(
            "base",
            f"scaled fp8 of the patch embedding too, a scale of a {per}",
            lambda c=codec: encode(values.base(), c, layers=is_weight),
        )


def _comfy_quant() -> Iterator[Variant]:
    formats = ("float8_e4m3fn", "float8_e5m2", "int8_tensorwise", "mxfp8", "nvfp4")
    for format in formats:
        codec = comfy(format)
        yield _row("base", f"`comfy_quant` {format}, in a tensor", with_descriptions(codec))
        yield _row("base", f"`comfy_quant` {format}, in the metadata", codec)
        yield _row("adapter", f"`comfy_quant` {format}, in the metadata", codec)
    for format in ("float8_e4m3fn", "nvfp4"):
        yield _row("merged", f"`comfy_quant` {format}, in the metadata", comfy(format))
        yield one_file(
            "base",
            f"`comfy_quant` {format} under `model.diffusion_model.`, in the metadata",
            lambda f=format: stored("base", comfy(f)).prefixed("model.diffusion_model."),
        )
        yield one_file(
            "base",
            f"`comfy_quant` {format} under `model.diffusion_model.`, in a tensor",
            lambda f=format: stored("base", with_descriptions(comfy(f))).prefixed(
                "model.diffusion_model."
            ),
        )
    yield _row(
        "base", "`comfy_quant` e4m3 as bytes", with_descriptions(comfy(formats[0], as_bytes=True))
    )
    yield _row(
        "base",
        "`comfy_quant` e4m3 with full precision products",
        comfy(formats[0], full_precision_matrix_mult=True),
    )
    yield _row(
        "base",
        "`comfy_quant` nvfp4 with `.input_scale`",
        with_descriptions(_with(comfy("nvfp4"), {".input_scale": _ONE}, described=True)),
    )


def _with(codec: Codec, others: Mapping[str, Tensor], *, described: bool = False) -> Codec:
    """Add tensors to each layer, and keep or drop the description of its format."""

    def encode_with(value: Tensor) -> Encoded:
        tensors, decoded, format = codec(value)
        return Encoded({**tensors, **others}, decoded, format if described else None)

    return encode_with


def _places() -> Iterator[Variant]:
    """Scaled weights under prefixes, in shards, and with other names."""
    codec = scaled(E4M3, ".scale_weight", "one")
    for prefix in ("model.diffusion_model.", "diffusion_model."):
        yield one_file(
            "base",
            f"scaled fp8, prefix `{prefix}`, marker too",
            lambda p=prefix: stored("base", codec, **_marker()).prefixed(p),
        )
    yield sharded(
        "base",
        "scaled fp8 in three shards, index chosen",
        lambda: stored("base", codec, **_marker()),
        as_index,
    )
    yield sharded(
        "merged",
        "scaled fp8 in three shards, first chosen",
        lambda: stored("merged", codec),
        lambda paths: paths[0],
    )
    yield one_file(
        "adapter",
        "scaled fp8, `multitalk_audio_proj.`",
        lambda: as_multitalk(stored("adapter", codec)),
    )
    yield one_file(
        "base",
        "scaled fp8, diffusers' names",
        lambda: stored("base", scaled(E4M3, ".weight_scale")).renamed(diffusers_wan),
    )


def _unknown() -> Iterator[Variant]:
    """Scales of names and forms that nothing here reads."""
    for end in (".scale", ".weight_scaling", ".scales", ".weight_s", ".wscales"):
        for family in ("base", "adapter"):
            yield _refused(
                family,
                f"e4m3 with the unknown scale `{end}`",
                "no known use|not read",
                scaled(E4M3, end),
            )
    zero = {".weight_zero_point": torch.zeros((), dtype=torch.int8)}
    yield _refused(
        "base",
        "int8 with a zero point",
        "no known use",
        scaled(torch.int8, ".weight_scale", others=zero),
    )
    second = {".weight_scale_2": _ONE * 2}
    yield _refused(
        "base",
        "e4m3 with a second scale of no format",
        "no known use",
        scaled(E4M3, ".weight_scale", others=second),
    )
    yield _refused(
        "base",
        "`comfy_quant` int8 with convrot",
        "convrot",
        with_descriptions(comfy("int8_tensorwise", convrot=True)),
    )
    yield _refused(
        "base",
        "`comfy_quant` int8 with convrot, in the metadata",
        "convrot",
        comfy("int8_tensorwise", params={"convrot": True}),
    )
    yield _refused(
        "base",
        "`comfy_quant` of an unknown format",
        "hadamard_int4",
        _described(comfy("int8_tensorwise"), "hadamard_int4"),
    )
    yield _refused("base", "optimum-quanto int8", "quanto", _quanto)
    yield _refused("adapter", "optimum-quanto int8 (Wan2GP)", "quanto", _quanto)
    yield _refused("base", "bitsandbytes nf4", "bitsandbytes", _bitsandbytes_nf4)
    yield _refused(
        "base", "bitsandbytes int8", "bitsandbytes|no known use", scaled(torch.int8, ".SCB", "row")
    )
    yield _refused("base", "int8 values without any scale", "I8 numbers", plain(torch.int8))
    yield _refused("base", "GPTQ (`.qweight`, `.qzeros`)", "GPTQ", _gptq)
    yield one_file(
        "base",
        "a scale beside the modulation",
        lambda: stored("base", plain(HALF)).plus(**{"head.modulation.scale": _ONE}),
        outcome=Refused("no known use"),
    )
    yield _refused("base", "SVDQuant (Nunchaku)", "SVDQuant", _svdquant)
    yield _refused("base", "torchao fp8", "torchao", _torchao)
    lightx2v = {".weight_global_scale": _ONE, ".input_global_scale": _ONE}
    yield _refused(
        "base",
        "LightX2V nvfp4 (`.weight_global_scale`)",
        "does not fit|no known use",
        _with(comfy("nvfp4"), lightx2v),
    )
    yield _refused("base", "a scale that does not fit", "does not fit", _misfit)


def _described(codec: Codec, format: str) -> Codec:
    def encode_with(value: Tensor) -> Encoded:
        tensors, decoded, _ = codec(value)
        return Encoded({**tensors, ".comfy_quant": as_json({"format": format})}, decoded)

    return encode_with


def _quanto(value: Tensor) -> Encoded:
    encoded = scaled(torch.int8, ".weight._scale", "column")(value)
    data = encoded.tensors[".weight"]
    tensors = {".weight._data": data, ".weight._scale": encoded.tensors[".weight._scale"]}
    return Encoded({**tensors, ".input_scale": _ONE, ".output_scale": _ONE}, encoded.value)


def _bitsandbytes_nf4(value: Tensor) -> Encoded:
    tensors = {
        ".weight": torch.zeros(value.numel() // 2, 1, dtype=torch.uint8),
        ".weight.absmax": torch.ones(value.numel() // 64),
        ".weight.quant_map": torch.linspace(-1, 1, 16),
        ".weight.quant_state.bitsandbytes__nf4": as_json({"quant_type": "nf4"}),
    }
    return Encoded(tensors, value)


def _gptq(value: Tensor) -> Encoded:
    rows, columns = value.shape
    tensors = {
        ".qweight": torch.zeros(columns // 8, rows, dtype=torch.int32),
        ".qzeros": torch.zeros(columns // 64, rows // 8, dtype=torch.int32),
        ".scales": torch.ones(columns // 64, rows, dtype=torch.float16),
        ".g_idx": torch.zeros(columns, dtype=torch.int32),
    }
    return Encoded(tensors, value)


def _svdquant(value: Tensor) -> Encoded:
    rows, columns = value.shape
    tensors = {
        ".qweight": torch.zeros(rows, columns // 2, dtype=torch.int8),
        ".wscales": torch.ones(columns // 64, rows, dtype=torch.bfloat16),
        ".smooth_factor": torch.ones(columns, dtype=torch.bfloat16),
        ".proj_down": torch.ones(columns, 16, dtype=torch.bfloat16),
        ".proj_up": torch.ones(rows, 16, dtype=torch.bfloat16),
    }
    return Encoded(tensors, value)


def _torchao(value: Tensor) -> Encoded:
    tensors = {
        "._weight_qdata": value.to(E4M3),
        "._weight_scale": torch.ones(len(value), 1),
    }
    return Encoded(tensors, value)


def _misfit(value: Tensor) -> Encoded:
    return Encoded({".weight": value.to(E4M3), ".weight_scale": torch.ones(7)}, value)
