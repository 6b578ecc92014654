"""LoRAs in every style of keys, with every form of factors; the sums are computed here."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from . import values
from .codecs import E4M3, E5M2
from .files import Loads, Refused, Variant, Written
from .lora_forms import (
    KOHYA,
    PEFT,
    RANK,
    Form,
    Tensors,
    convolution,
    dora,
    loha,
    lokr,
    lokr_in_factors,
    low_rank,
    scaled,
)
from .spellings import diffusers_wan
from .stored import is_matrix
from .values import noise

Spell = Callable[[str], str]
LAYERS = (
    "blocks.0.self_attn.q", "blocks.0.cross_attn.k_img", "blocks.0.ffn.2", "blocks.1.self_attn.o",
    "blocks.1.cross_attn.v", "blocks.1.ffn.0",
)  # fmt: skip
_TOLERANCE = 1e-6  # sums in another order


def variant(
    name: str,
    form: Form,
    spell: Spell,
    *,
    extra: Tensors | None = None,
    metadata: Mapping[str, str] | None = None,
    layers: tuple[str, ...] = LAYERS,
    words: str = "",
) -> Variant:
    """Describe a LoRA of some layers of the plain base; `extra` changes nothing."""

    def written(folder: Path) -> Written:
        expected = plain_base()
        tensors = dict(extra or {})
        for layer in layers:
            made, expected[f"{layer}.weight"] = form(layer, expected[f"{layer}.weight"])
            tensors |= {spell(layer) + end: tensor for end, tensor in made.items()}
        path = folder / "lora.safetensors"
        save_file({n: t.contiguous() for n, t in tensors.items()}, path, dict(metadata or {}))
        return Written(path, Refused(words) if words else Loads(expected, _TOLERANCE))

    return Variant("lora", name, written)


def plain_base() -> dict[str, Tensor]:
    """Give the base that a LoRA changes: that of the plain set."""
    return dict(values.base())


def prefixed(prefix: str) -> Spell:
    """Put a prefix before a layer's name."""
    return lambda layer: prefix + layer


def kohya(layer: str) -> str:
    """Spell a layer as Kohya's scripts do."""
    return "lora_unet_" + layer.replace(".", "_")


def diffusers(layer: str) -> str:
    """Spell a layer as diffusers does, without its prefix."""
    return diffusers_wan(f"{layer}.weight").removesuffix(".weight")


def every_layer() -> tuple[str, ...]:
    """List the linear layers of the base."""
    found = (name for name, value in values.base().items() if is_matrix(name, value))
    return tuple(name.removesuffix(".weight") for name in found)


def rows() -> Iterator[Variant]:
    """Give all variants."""
    yield from _spellings()
    yield from _scales()
    yield from _dtypes()
    yield from _forms()
    yield from _differences()
    yield from _other_models()
    yield from _wrong()


def _spellings() -> Iterator[Variant]:
    for prefix in (
        "diffusion_model.",
        "",
        "transformer.",
        "base_model.model.",
        "model.",
        "base_model.model.diffusion_model.",
        "model.diffusion_model.",
    ):
        yield variant(
            f"PEFT, prefix `{prefix}`" if prefix else "PEFT, no prefix", PEFT, prefixed(prefix)
        )
    named = low_rank(".lora_B.default.weight", ".lora_A.default.weight")
    yield variant("PEFT, named adapter (`lora_A.default`)", named, prefixed("base_model.model."))
    for name, spell in {
        "Kohya (`lora_unet_blocks_0_...`)": kohya,
        "Kohya with dots (`lora_unet_blocks.0...`)": prefixed("lora_unet_"),
        "Kohya's endings, `diffusion_model.`": prefixed("diffusion_model."),
        "Kohya's endings, no prefix": prefixed(""),
        "Kohya, diffusers' layers": lambda layer: "lora_unet_" + diffusers(layer).replace(".", "_"),
        "Kohya, `lora_transformer_`": lambda layer: "lora_transformer_" + layer.replace(".", "_"),
    }.items():
        yield variant(name, KOHYA, spell)
    yield variant(
        "diffusers (`transformer...attn1.to_q.lora_A`)",
        PEFT,
        lambda layer: "transformer." + diffusers(layer),
    )
    yield variant("diffusers, no prefix", PEFT, diffusers)
    for name, form, spell in (
        ("PEFT", PEFT, prefixed("diffusion_model.")),
        ("Kohya", KOHYA, kohya),
        ("diffusers", PEFT, lambda layer: "transformer." + diffusers(layer)),
    ):
        yield variant(f"{name}, every linear layer", form, spell, layers=every_layer())
    yield variant("Kohya without alpha", low_rank(".lora_up.weight", ".lora_down.weight"), kohya)
    yield variant(
        "Kohya, `lora_unet__`", KOHYA, lambda layer: kohya(layer).replace("_unet_", "_unet__")
    )
    old = low_rank(".lora.up.weight", ".lora.down.weight")
    yield variant(
        "`.lora.up.weight`, diffusers' layers", old, lambda layer: "transformer." + diffusers(layer)
    )
    yield variant("`.lora.up.weight`, Wan's layers", old, prefixed("diffusion_model."))


def _scales() -> Iterator[Variant]:
    dotted = prefixed("diffusion_model.")
    yield variant("alpha of each layer", low_rank(alpha=2.0), dotted)
    settings = {"transformer.r": RANK, "transformer.lora_alpha": 8}
    component = prefixed("transformer.")
    yield variant(
        "alpha in `lora_adapter_metadata`",
        low_rank(scale=2.0),
        component,
        metadata=_settings(settings),
    )
    yield variant(
        "rs-LoRA in `lora_adapter_metadata`",
        low_rank(scale=8 / math.sqrt(RANK)),
        component,
        metadata=_settings({**settings, "transformer.use_rslora": True}),
    )
    yield variant(
        "rs-LoRA without an alpha",
        low_rank(scale=math.sqrt(RANK)),
        component,
        metadata=_settings({"transformer.use_rslora": True}),
    )
    yield variant(
        "rs-LoRA, alpha of each layer",
        low_rank(alpha=2.0, scale=2 / math.sqrt(RANK)),
        component,
        metadata=_settings({"transformer.use_rslora": True}),
    )
    yield variant(
        "alpha of some layers in `lora_adapter_metadata` (`alpha_pattern`)",
        _patterned,
        component,
        metadata=_settings({**settings, "transformer.alpha_pattern": {"ffn.0": 4}}),
    )


def _settings(settings: Mapping[str, object]) -> dict[str, str]:
    return {"lora_adapter_metadata": json.dumps(settings), "format": "pt"}


def _patterned(layer: str, weight: Tensor) -> tuple[Tensors, Tensor]:
    return low_rank(scale=1.0 if layer.endswith("ffn.0") else 2.0)(layer, weight)


def _dtypes() -> Iterator[Variant]:
    full, half, brain = torch.float32, torch.float16, torch.bfloat16
    pairs = {
        "fp32": (full, full), "bf16": (brain, brain), "fp16 and bf16 mixed": (half, brain),
        "fp32 and fp16 mixed": (full, half), "fp8 e4m3": (E4M3, E4M3),
        "fp8 and bf16": (E5M2, brain),
    }  # fmt: skip
    for name, dtypes in pairs.items():
        yield variant(f"factors in {name}", low_rank(dtypes=dtypes), prefixed("diffusion_model."))
    for end in (".scale_weight", ".weight_scale"):
        yield variant(f"scaled fp8 (`{end}`)", scaled(end), prefixed("diffusion_model."))
    marker = {"scaled_fp8": torch.zeros(0, dtype=E4M3)}
    yield variant(
        "scaled fp8 with its marker",
        scaled(".scale_weight"),
        prefixed("diffusion_model."),
        extra=marker,
    )


def _forms() -> Iterator[Variant]:
    for name, spell in {"Kohya": kohya, "dots": prefixed("diffusion_model.")}.items():
        yield variant(f"LoHa, {name}", loha, spell)
        yield variant(f"LoKr of two matrices, {name}", lokr, spell)
        yield variant(f"LoKr of factors, {name}", lokr_in_factors, spell)
        yield variant(f"DoRA of rows (`dora_scale`), {name}", dora(".dora_scale", 0), spell)
        yield variant(f"DoRA of columns (`dora_scale`), {name}", dora(".dora_scale", 1), spell)
    peft = prefixed("base_model.model.")
    yield variant(
        "DoRA of PEFT (`lora_magnitude_vector`)", dora(".lora_magnitude_vector", 0, PEFT), peft
    )
    yield variant(
        "DoRA of PEFT, named adapter", dora(".lora_magnitude_vector.default.weight", 0, PEFT), peft
    )
    patch = ("patch_embedding",)
    yield variant(
        "of the patch embedding, as a convolution",
        convolution,
        prefixed("diffusion_model."),
        layers=patch,
    )


def _differences() -> Iterator[Variant]:
    changed = {
        "blocks.0.norm3.diff": "blocks.0.norm3.weight",
        "blocks.0.self_attn.q.diff_b": "blocks.0.self_attn.q.bias",
        "blocks.1.self_attn.norm_q.diff": "blocks.1.self_attn.norm_q.weight",
        "blocks.1.ffn.0.diff": "blocks.1.ffn.0.weight",
        "head.head.diff_b": "head.head.bias",
        "blocks.1.diff_m": "blocks.1.modulation",
        "head.diff_m": "head.modulation",
    }
    for name, pattern in {
        "`.diff`": r"\.diff$", "`.diff_b`": r"\.diff_b$", "`.diff_m` (lightx2v)": r"\.diff_m$",
        "LoRA with `.diff`, `.diff_b` and `.diff_m` (lightx2v)": "",
    }.items():  # fmt: skip
        yield _of_differences(
            name,
            {k: n for k, n in changed.items() if re.search(pattern, k)},
            with_factors=not pattern,
        )


def _of_differences(name: str, changed: Mapping[str, str], *, with_factors: bool) -> Variant:
    def written(folder: Path) -> Written:
        expected = plain_base()
        tensors: dict[str, Tensor] = {}
        for layer in LAYERS[:3] if with_factors else ():
            made, expected[f"{layer}.weight"] = PEFT(layer, expected[f"{layer}.weight"])
            tensors |= {f"diffusion_model.{layer}{end}": tensor for end, tensor in made.items()}
        for key, target in changed.items():
            difference = (noise(key, tuple(expected[target].shape)) * 0.1).half()
            tensors[f"diffusion_model.{key}"] = difference
            expected[target] = expected[target] + difference.float()
        path = folder / "lora.safetensors"
        save_file(tensors, path)
        return Written(path, Loads(expected, _TOLERANCE))

    return Variant("lora", name, written)


def _other_models() -> Iterator[Variant]:
    """Keys that this transformer has no place for are left out with a warning."""
    text = {
        "lora_te_text_model_encoder_layers_0_mlp_fc1.lora_down.weight": torch.ones(4, 8),
        "lora_te_text_model_encoder_layers_0_mlp_fc1.lora_up.weight": torch.ones(8, 4),
        "text_encoder.encoder.block.0.layer.0.SelfAttention.q.lora_A.weight": torch.ones(4, 8),
    }
    vace = {
        "diffusion_model.vace_blocks.0.self_attn.q.lora_A.weight": torch.ones(4, 256),
        "diffusion_model.vace_blocks.0.self_attn.q.lora_B.weight": torch.ones(256, 4),
    }
    t2v = {
        "diffusion_model.patch_embedding.diff": torch.ones(256, 16, 1, 2, 2),
        "diffusion_model.patch_embedding.diff_b": torch.zeros(256),
    }
    low_rank_t2v = {
        "diffusion_model.patch_embedding.lora_A.weight": torch.ones(4, 16, 1, 2, 2),
        "diffusion_model.patch_embedding.lora_B.weight": torch.ones(256, 4, 1, 1, 1),
    }
    dotted = prefixed("diffusion_model.")
    yield variant(
        "with a low-rank 16-channel patch embedding (T2V)", PEFT, dotted, extra=low_rank_t2v
    )
    yield variant("with keys of a text encoder", KOHYA, kohya, extra=text)
    yield variant("with keys of VACE", PEFT, dotted, extra=vace)
    yield variant("with a 16-channel patch embedding (T2V)", PEFT, dotted, extra=t2v)


def _wrong() -> Iterator[Variant]:
    dotted = prefixed("diffusion_model.")
    yield variant("of a model of another width", _narrow, dotted, words="shape")
    yield variant("a factor lost", lambda *a: _without(".lora_A.weight", *a), dotted, words="both")
    yield variant(
        "layers that this model has not",
        PEFT,
        lambda layer: dotted(layer.replace("blocks.1", "blocks.39")),
        words="match no layer",
    )
    unknown = low_rank(".glora_b.weight", ".glora_a.weight")
    yield variant(
        "a form that is not read (GLoRA)",
        unknown,
        dotted,
        words="no known|not a LoRA|match no|not read",
    )
    scale = {f"{dotted(LAYERS[0])}.lora_B.scaling": torch.ones(())}
    yield variant(
        "factors with a scale of an unknown name", PEFT, dotted, extra=scale, words="scaling"
    )


def _narrow(layer: str, weight: Tensor) -> tuple[Tensors, Tensor]:
    return PEFT(layer, weight[: len(weight) // 2, : weight.shape[1] // 2])[0], weight


def _without(end: str, layer: str, weight: Tensor) -> tuple[Tensors, Tensor]:
    tensors, changed = PEFT(layer, weight)
    return {name: tensor for name, tensor in tensors.items() if name != end}, changed
