"""What the `multitalk` command makes of a variant: the model that it loads, compared by tensor."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from ...multitalk_core.errors import InputError, WeightsError
from ...standalone.encoders import load_image_encoder, load_text_encoder
from ...standalone.request import Lora, ModelFiles
from ...standalone.vae import load_vae
from ...standalone.weights import OpenFiles
from ...wan_gguf_loader.errors import GGUFError
from ...wan_gguf_loader.ops import GGUFLinear
from . import values
from .files import Family, Variant, Written
from .plain import PlainSet
from .result import Result, compared, refused
from .spellings import transformers_state, wan_vae_state

_CPU = torch.device("cpu")
_PLACES: Mapping[Family, str] = {
    "merged": "base",
    "lookalike": "base",
}


def check(variant: Variant, written: Written, plain: PlainSet) -> Result:
    """Load a variant with the rest of the plain set, as `multitalk generate` does."""
    try:
        loaded = _load(variant.family, written.path, plain)
    except (GGUFError, InputError, WeightsError) as error:
        return refused(str(error), written.outcome)
    return compared(loaded, written.outcome)


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
