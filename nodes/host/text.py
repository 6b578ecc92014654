"""CLIP: ComfyUI's own UMT5 text encoder, in any size, from safetensors or GGUF.

ComfyUI's loader knows the full size alone and no GGUF. The classes are its own (`T5`,
`SDClipModel`, `WanT5Tokenizer`); only their sizes come from the file's shapes.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Mapping
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
from ...wan_gguf_loader.files import WeightsFile, open_weights
from .layers import HostLinear, adopt
from .sentencepiece import model_from_gguf

_NAME = "umt5xxl"  # ComfyUI's key of the token lists
_LLAMA_NAMES = (
    (r"^token_embd\.", "shared."),
    (r"^enc\.output_norm\.", "encoder.final_layer_norm."),
    (r"^enc\.blk\.(\d+)\.attn_norm\.", r"encoder.block.\1.layer.0.layer_norm."),
    (
        r"^enc\.blk\.(\d+)\.attn_rel_b\.",
        r"encoder.block.\1.layer.0.SelfAttention.relative_attention_bias.",
    ),
    (r"^enc\.blk\.(\d+)\.attn_([qkvo])\.", r"encoder.block.\1.layer.0.SelfAttention.\2."),
    (r"^enc\.blk\.(\d+)\.ffn_norm\.", r"encoder.block.\1.layer.1.layer_norm."),
    (r"^enc\.blk\.(\d+)\.ffn_gate\.", r"encoder.block.\1.layer.1.DenseReluDense.wi_0."),
    (r"^enc\.blk\.(\d+)\.ffn_up\.", r"encoder.block.\1.layer.1.DenseReluDense.wi_1."),
    (r"^enc\.blk\.(\d+)\.ffn_down\.", r"encoder.block.\1.layer.1.DenseReluDense.wo."),
)


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
        names = {name: _huggingface_name(name) for name in file.tensors}
        shapes = {names[name]: shape for name, shape in file.shapes.items()}
        require(identify(shapes), (FileKind.UMT5,), source=path.name, place="Load UMT5")
        sizes = _sizes(shapes)
        if file.format == "gguf":
            return _from_gguf(file, names, sizes)
    return _from_safetensors(path, sizes)


def _from_safetensors(path: Path, sizes: dict[str, Any]) -> Any:
    weights, metadata = comfy.utils.load_torch_file(str(path), safe_load=True, return_metadata=True)
    weights, _ = comfy.utils.convert_old_quants(weights, model_prefix="", metadata=metadata)
    tokenizer = weights.get("spiece_model")
    if tokenizer is None:
        raise WeightsError(
            f"{path.name} has no tokenizer (no tensor 'spiece_model'). Take the packaging of "
            "https://huggingface.co/Comfy-Org/Wan_2.1_ComfyUI_repackaged."
        )
    options = {"dtype": weights["encoder.final_layer_norm.weight"].dtype}
    quantization = comfy.utils.detect_layer_quantization(weights, "")
    if quantization is not None:
        options["quantization_metadata"] = quantization
    return _clip(sizes, tokenizer=tokenizer, options=options, weights=weights)


def _from_gguf(file: WeightsFile, names: Mapping[str, str], sizes: dict[str, Any]) -> Any:
    tokenizer = model_from_gguf(file.metadata, source=file.path.name)
    options = {"custom_operations": _PackedOps, "initial_device": torch.device("meta")}
    clip = _clip(sizes, tokenizer=tokenizer, options=options, weights={})
    transformer = getattr(clip.cond_stage_model, _NAME).transformer
    _fill(transformer, file, {names[name]: name for name in file.tensors})
    # The patcher asks what dtype each tensor should have: that of the file, not of the empty model.
    comfy.model_management.archive_model_dtypes(clip.cond_stage_model)
    return clip


def _clip(
    sizes: dict[str, Any], *, tokenizer: Any, options: dict[str, Any], weights: dict[str, Tensor]
) -> Any:
    encoder = functools.partial(
        comfy.sd1_clip.SDClipModel,
        layer="last",
        textmodel_json_config=sizes,
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


def _fill(transformer: nn.Module, file: WeightsFile, stored: Mapping[str, str]) -> None:
    """Load a transformer built on "meta": packed linear layers, everything else decoded."""
    expected = [name for name in transformer.state_dict() if not name.endswith(".weight_type")]
    absent = [name for name in expected if name not in stored]
    if absent:
        raise WeightsError(
            f"{file.path.name} lacks {len(absent)} tensors of a UMT5 encoder, such as {absent[0]}. "
            "Download it again, or take another file."
        )
    linear = {
        f"{name}.weight" for name, m in transformer.named_modules() if isinstance(m, HostLinear)
    }
    decoded = {
        name: file.dequantize(stored[name], torch.float32 if "norm" in name else torch.bfloat16)
        for name in expected
        if name not in linear
    }
    transformer.load_state_dict(decoded, strict=False, assign=True)
    for name in linear:
        layer = transformer.get_submodule(name.removesuffix(".weight"))
        assert isinstance(layer, HostLinear)
        layer.store_weight(file.read(stored[name]), file.tensors[stored[name]].type)
    adopt(transformer)


def _sizes(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Any]:
    """Read ComfyUI's T5 settings off the shapes."""
    first = "encoder.block.0.layer"
    vocabulary, width = shapes["shared.weight"]
    num_heads = shapes[f"{first}.0.SelfAttention.relative_attention_bias.weight"][1]
    blocks = {name.split(".")[2] for name in shapes if name.startswith("encoder.block.")}
    return {
        "model_type": "umt5",
        "vocab_size": vocabulary,
        "d_model": width,
        "d_kv": shapes[f"{first}.0.SelfAttention.q.weight"][0] // num_heads,
        "d_ff": shapes[f"{first}.1.DenseReluDense.wi_0.weight"][0],
        "num_heads": num_heads,
        "num_layers": len(blocks),
        "dense_act_fn": "gelu_pytorch_tanh",
        "is_gated_act": True,
    }


def _huggingface_name(name: str) -> str:
    """Translate a tensor name of llama.cpp's; others stay as they are."""
    for pattern, replacement in _LLAMA_NAMES:
        name, count = re.subn(pattern, replacement, name)
        if count:
            break
    return name
