"""CLIP: ComfyUI's own UMT5 text encoder, in any size, from safetensors or GGUF.

ComfyUI's loader reads only the full size, and no GGUF. The classes are ComfyUI's own (`T5`,
`SDClipModel`, `WanT5Tokenizer`); their sizes come from the shapes in the file.
"""

from __future__ import annotations

import dataclasses
import functools
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import comfy.model_management
import comfy.ops
import comfy.sd
import comfy.sd1_clip
import comfy.text_encoders.t5
import comfy.text_encoders.wan
import comfy.utils
import folder_paths
import torch
from torch import Tensor, nn

from ...multitalk_core.errors import WeightsError
from ...multitalk_core.files.identify import FileKind, identify, require
from ...multitalk_core.files.sizes import Umt5Sizes, check_shapes, umt5_sizes
from ...wan_gguf_loader.files import WeightsFile, open_weights
from ...wan_gguf_loader.tokenizer import tokenizer_model
from .layers import HostLinear, adopt

_NAME = "umt5xxl"  # ComfyUI's key of the token lists
_BUCKETS = 32  # of the relative positions, fixed in ComfyUI's class


class _PackedOps(comfy.ops.manual_cast):
    """ComfyUI's casting layers, with linear ones that hold packed bytes."""

    Linear = HostLinear


def load_text_encoder(path: Path) -> Any:
    """Load a UMT5 encoder as ComfyUI's CLIP.

    Raises:
        WeightsError: If the file is something else or brings no tokenizer.
        GGUFError: If it cannot be read.
    """
    with open_weights(path) as file:
        require(identify(file.shapes), FileKind.UMT5, source=path.name, place="Load UMT5")
        sizes = umt5_sizes(file.shapes, source=path.name)
        if sizes.relative_attention_num_buckets != _BUCKETS:
            raise WeightsError(
                f"{path.name} has {sizes.relative_attention_num_buckets} position buckets; "
                f"ComfyUI's UMT5 has {_BUCKETS}. Get umt5_xxl_fp16.safetensors."
            )
        needed = _needed(file, sizes)
        check_shapes(file.shapes, needed, source=path.name, what="a UMT5 encoder")
        for name in needed:
            file.weight_info(name)  # refuses whole numbers
        load = _from_gguf if file.format == "gguf" else _from_safetensors
        return load(file, sizes)


def _from_safetensors(file: WeightsFile, sizes: Umt5Sizes) -> Any:
    tokenizer = tokenizer_model(file)
    weights, metadata = comfy.utils.load_torch_file(
        str(file.path), safe_load=True, return_metadata=True
    )
    weights, _ = comfy.utils.convert_old_quants(weights, model_prefix="", metadata=metadata)
    options = {"dtype": weights["encoder.final_layer_norm.weight"].dtype}
    quantization = comfy.utils.detect_layer_quantization(weights, "")
    if quantization is not None:
        options["quantization_metadata"] = quantization
    return _clip(sizes, tokenizer=tokenizer, options=options, weights=weights)


def _from_gguf(file: WeightsFile, sizes: Umt5Sizes) -> Any:
    options = {"custom_operations": _PackedOps, "initial_device": torch.device("meta")}
    clip = _clip(sizes, tokenizer=tokenizer_model(file), options=options, weights={})
    transformer = getattr(clip.cond_stage_model, _NAME).transformer
    _fill(transformer, file)
    # The patcher asks for the dtype of each tensor: that of the file, not of the empty model.
    comfy.model_management.archive_model_dtypes(clip.cond_stage_model)
    return clip


def _needed(file: WeightsFile, sizes: Umt5Sizes) -> dict[str, tuple[int, ...]]:
    """Give the names and shapes of ComfyUI's class, without layers that are quantised its way."""
    model = comfy.text_encoders.t5.T5(
        _settings(sizes), torch.float32, torch.device("meta"), comfy.ops.manual_cast
    )
    return {
        name: tuple(tensor.shape)
        for name, tensor in model.state_dict().items()
        if f"{name.removesuffix('.weight')}.comfy_quant" not in file.tensors
    }


def _settings(sizes: Umt5Sizes) -> dict[str, Any]:
    return {
        "model_type": "umt5",
        "dense_act_fn": "gelu_pytorch_tanh",
        "is_gated_act": True,
        **dataclasses.asdict(sizes),
    }


def _clip(
    sizes: Umt5Sizes, *, tokenizer: bytes, options: dict[str, Any], weights: dict[str, Tensor]
) -> Any:
    encoder = functools.partial(
        comfy.sd1_clip.SDClipModel,
        layer="last",
        textmodel_json_config=_settings(sizes),
        special_tokens={"end": 1, "pad": 0},
        model_class=comfy.text_encoders.t5.T5,
        enable_attention_masks=True,
        zero_out_masked=True,
    )
    target = SimpleNamespace(
        clip=functools.partial(comfy.sd1_clip.SD1ClipModel, name=_NAME, clip_model=encoder),
        tokenizer=comfy.text_encoders.wan.WanT5Tokenizer,
        params={},
    )
    return comfy.sd.CLIP(
        target,
        embedding_directory=folder_paths.get_folder_paths("embeddings"),
        tokenizer_data={"spiece_model": tokenizer},
        parameters=comfy.utils.calculate_parameters(weights),
        state_dict=[weights] if weights else [],
        model_options=options,
    )


def _fill(transformer: nn.Module, file: WeightsFile) -> None:
    """Load a transformer built on "meta": linear layers stay packed, all else is decoded."""
    linear = {
        f"{name}.weight": module
        for name, module in transformer.named_modules()
        if isinstance(module, HostLinear)
    }
    decoded = {
        name: file.dequantize(name, torch.float32 if "norm" in name else torch.bfloat16)
        for name in transformer.state_dict()
        if name not in linear and not name.endswith(".weight_type")
    }
    transformer.load_state_dict(decoded, strict=False, assign=True)
    for name, layer in linear.items():
        layer.store_weight(file.read(name), file.weight_info(name).type)
    adopt(transformer)
