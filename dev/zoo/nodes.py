"""What the nodes make of a variant inside ComfyUI; `inside.py` starts it there."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import comfy.model_management
import torch
from torch import Tensor, nn

from ...multitalk_core.errors import InputError, WeightsError
from ...nodes.host import speech, text, vision
from ...nodes.host.lora_file import load_lora
from ...nodes.host.model import load_adapter, load_base
from ...nodes.host.vae import load_vae
from ...wan_gguf_loader.errors import GGUFError
from ...wan_gguf_loader.ops import GGUFLinear
from . import values
from .files import Family, Variant, Written
from .plain import PlainSet
from .result import Result, compared, refused
from .spellings import transformers_state


def check(variant: Variant, written: Written, plain: PlainSet) -> Result:
    """Load a variant with the pack's loader of its kind."""
    try:
        loaded = _load(variant.family, written.path, plain)
    except (GGUFError, InputError, WeightsError) as error:
        return refused(str(error), written.outcome)
    return compared(loaded, written.outcome)


def _load(family: Family, path: Path, plain: PlainSet) -> Mapping[str, Tensor]:
    if family == "text_encoder":
        clip = text.load_text_encoder(path)
        tokens = [token for token, _ in clip.tokenize(values.PROMPT)["umt5xxl"][0] if token]
        state = decoded(clip.cond_stage_model.umt5xxl.transformer)
        return {**state, values.TOKENS: torch.tensor(tokens)}
    if family == "clip_vision":
        return transformers_state(vision.load_clip_vision(path).model)
    if family == "wav2vec2":
        return transformers_state(speech.VoiceEncoder(path)._model)
    if family == "vae":
        return dict(load_vae(path).get_sd())
    if family == "lora":
        return _computed(load_lora(load_base(plain.base), path, strength=1.0)[0])
    if family == "adapter":
        return _transformer(load_adapter(load_base(plain.base), path))
    return _transformer(load_base(path))


def _transformer(model: Any) -> Mapping[str, Tensor]:
    return decoded(model.model.diffusion_model)


def _computed(patcher: Any) -> dict[str, Tensor]:
    """Give the tensors of a MODEL with LoRAs, by what its layers compute."""
    comfy.model_management.load_models_gpu([patcher])
    model = patcher.model.diffusion_model
    found = dict(model.named_parameters())
    for path, layer in model.named_modules():
        if isinstance(layer, GGUFLinear):
            nothing = layer(torch.zeros(1, layer.in_features))
            found[f"{path}.bias"] = nothing[0]
            found[f"{path}.weight"] = (layer(torch.eye(layer.in_features)) - nothing).T
    return found


def decoded(model: nn.Module) -> dict[str, Tensor]:
    """Give every tensor of a model by name, packed ones and those of ComfyUI's formats decoded."""
    found: dict[str, Tensor] = {}
    for path, module in model.named_modules():
        for leaf, tensor in (
            *module.named_parameters(recurse=False),
            *module.named_buffers(recurse=False),
        ):
            name = f"{path}.{leaf}" if path else leaf
            if isinstance(module, GGUFLinear) and module.is_packed and leaf == "weight":
                found[name] = module.dequantized_weight(torch.float32)
            else:
                found[name] = tensor.dequantize() if hasattr(tensor, "_qdata") else tensor
    return found
