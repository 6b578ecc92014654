"""What the `multitalk` command makes of a variant: the model that it loads, compared by tensor."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from ...multitalk_core.errors import InputError, WeightsError
from ...standalone.encoders import load_image_encoder, load_text_encoder
from ...standalone.inspection import inspect_file
from ...standalone.request import Lora, ModelFiles
from ...standalone.vae import load_vae
from ...standalone.weights import OpenFiles
from ...wan_gguf_loader.errors import GGUFError
from ...wan_gguf_loader.ops import GGUFLinear
from . import values
from .files import Family, Refused, Variant, Written
from .plain import PlainSet
from .result import Result, compared, refused
from .spellings import transformers_state, wan_vae_state

_CPU = torch.device("cpu")
OPTIONS: Mapping[Family, str] = {
    "base": "--base",
    "adapter": "--adapter",
    "merged": "--base",
    "text_encoder": "--text-encoder",
    "clip_vision": "--clip-vision",
    "wav2vec2": "--wav2vec",
    "vae": "--vae",
    "lora": "--lora",
    "lookalike": "--base",
}
_SEVERAL = (
    "vae: in a checkpoint beside the base",
    "text_encoder: in a checkpoint beside the base",
)
"""They hold several models, of which `inspect` names the first."""
_PLACES: Mapping[Family, str] = {
    "merged": "base",
    "lookalike": "base",
}


def check(variant: Variant, written: Written, plain: PlainSet) -> Result:
    """Load a variant with the rest of the plain set, as `multitalk generate` does.

    `multitalk inspect` must say of a file that loads what `generate` does with it.
    """
    try:
        loaded = _load(variant.family, written.path, plain)
    except (GGUFError, InputError, WeightsError) as error:
        result = refused(str(error), written.outcome)
    else:
        result = compared(loaded, written.outcome)
    if isinstance(written.outcome, Refused) or result.problem:
        return result
    return Result(result.text, _contradiction(variant, written.path))


def _contradiction(variant: Variant, path: Path) -> str:
    """Say how `multitalk inspect` contradicts what `generate` took; empty if it does not."""
    try:
        option = inspect_file(path).option
    except (GGUFError, WeightsError) as error:
        return f"inspect refuses it: {error}"
    wanted = OPTIONS[variant.family]
    several = variant.title in _SEVERAL
    return "" if option == wanted or several else f"inspect says {option}, not {wanted}"


def _load(family: Family, path: Path, plain: PlainSet) -> Mapping[str, Tensor]:
    files = OpenFiles(_files(family, path, plain))
    if family == "text_encoder":
        encoder = load_text_encoder(files.text_encoder, device=_CPU, dtype=torch.float32)
        tokens = encoder.tokenize(values.PROMPT)[0]
        return {**transformers_state(encoder.model), values.TOKENS: tokens}
    if family == "clip_vision":
        vision = load_image_encoder(files.clip_vision, device=_CPU, dtype=torch.float32)
        return transformers_state(vision.model)
    if family == "vae":
        return wan_vae_state(
            load_vae(files.vae, device=_CPU, dtype=torch.float32).model.state_dict()
        )
    if family == "wav2vec2":
        return transformers_state(files.load_wav2vec2())
    return decoded(files.load_transformer(torch.float32))


def decoded(model: nn.Module) -> dict[str, Tensor]:
    """Give every tensor of a transformer by name, float32, LoRAs applied."""
    found = {name: tensor.float() for name, tensor in model.state_dict().items()}
    for name, layer in model.named_modules():
        if isinstance(layer, GGUFLinear):
            found[f"{name}.weight"] = layer.dequantized_weight(torch.float32)
    return {name: value for name, value in found.items() if not name.endswith(".weight_type")}


def _files(family: Family, path: Path, plain: PlainSet) -> ModelFiles:
    given = {
        "base": plain.base,
        "adapter": plain.adapter,
        "loras": (),
        "wav2vec2": plain.wav2vec2,
        "vae": plain.vae,
        "text_encoder": plain.text_encoder,
        "clip_vision": plain.clip_vision,
    }
    if family == "lora":
        given["loras"] = (Lora(path, 1.0),)
    else:
        given[_PLACES.get(family, family)] = path
    if family == "merged":
        given["adapter"] = None
    return ModelFiles(**given)  # type: ignore[arg-type]
