"""Encoders and VAE under the names of other packagings, written from the plain files' tensors."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

Tensors = dict[str, Tensor]
Spell = Callable[[Mapping[str, Tensor]], Tensors]

_WAN_UMT5 = {
    "shared.": "token_embedding.",
    "encoder.final_layer_norm.": "norm.",
    "encoder.block.": "blocks.",
    ".layer.0.layer_norm.": ".norm1.",
    ".layer.0.SelfAttention.relative_attention_bias.": ".pos_embedding.embedding.",
    ".layer.0.SelfAttention.": ".attn.",
    ".layer.1.layer_norm.": ".norm2.",
    ".layer.1.DenseReluDense.wi_0.": ".ffn.gate.0.",
    ".layer.1.DenseReluDense.wi_1.": ".ffn.fc1.",
    ".layer.1.DenseReluDense.wo.": ".ffn.fc2.",
}
_OPEN_CLIP = {
    "vision_model.embeddings.class_embedding": "visual.class_embedding",
    "vision_model.embeddings.position_embedding.weight": "visual.positional_embedding",
    "vision_model.embeddings.patch_embedding.": "visual.conv1.",
    "vision_model.pre_layrnorm.": "visual.ln_pre.",
    "vision_model.post_layernorm.": "visual.ln_post.",
    "vision_model.encoder.layers.": "visual.transformer.resblocks.",
    ".self_attn.out_proj.": ".attn.out_proj.",
    ".layer_norm": ".ln_",
    ".mlp.fc1.": ".mlp.c_fc.",
    ".mlp.fc2.": ".mlp.c_proj.",
}
_WAN_CLIP = {
    "vision_model.embeddings.class_embedding": "visual.cls_embedding",
    "vision_model.embeddings.position_embedding.weight": "visual.pos_embedding",
    "vision_model.embeddings.patch_embedding.": "visual.patch_embedding.",
    "vision_model.pre_layrnorm.": "visual.pre_norm.",
    "vision_model.post_layernorm.": "visual.post_norm.",
    "vision_model.encoder.layers.": "visual.transformer.",
    ".self_attn.out_proj.": ".attn.proj.",
    ".layer_norm": ".norm",
    ".mlp.fc1.": ".mlp.0.",
    ".mlp.fc2.": ".mlp.2.",
}
_VAE_LEAVES = {
    "norm1.": "residual.0.",
    "conv1.": "residual.2.",
    "norm2.": "residual.3.",
    "conv2.": "residual.6.",
    "conv_shortcut.": "shortcut.",
}


def prefixed(prefix: str) -> Spell:
    """Put a prefix before every name."""
    return lambda tensors: {prefix + name: tensor for name, tensor in tensors.items()}


def wan_umt5(tensors: Mapping[str, Tensor]) -> Tensors:
    """As Kijai's umt5-xxl-enc files: Wan's names, no tokenizer."""
    return {
        _replaced(name, _WAN_UMT5): tensor
        for name, tensor in tensors.items()
        if name != "spiece_model"
    }


def open_clip(tensors: Mapping[str, Tensor]) -> Tensors:
    """As LAION's files: query, key and value in one tensor, and a text tower of the same names."""
    spelled = _joined(tensors, _OPEN_CLIP, "in_proj_")
    if "visual_projection.weight" in spelled:
        spelled["visual.proj"] = spelled.pop("visual_projection.weight").T.contiguous()
    text = {
        name.removeprefix("visual."): torch.ones(3) for name in spelled if ".resblocks." in name
    }
    text |= {name: torch.ones(3) for name in ("positional_embedding", "token_embedding.weight")}
    return spelled | text | {"logit_scale": torch.tensor(4.6), "text_projection": torch.ones(3, 3)}


def wan_clip(tensors: Mapping[str, Tensor]) -> Tensors:
    """As Kijai's open-clip-xlm-roberta file: Wan's names, leading dimensions, and a text tower."""
    spelled = _joined(tensors, _WAN_CLIP, "to_qkv.")
    if "visual_projection.weight" in spelled:
        spelled["visual.head"] = spelled.pop("visual_projection.weight").T.contiguous()
    for name, rank in (("visual.cls_embedding", 3), ("visual.pos_embedding", 3)):
        tensor = spelled[name]
        spelled[name] = tensor.reshape(*(1,) * (rank - tensor.ndim), *tensor.shape)
    return spelled | {"textual.head.0.weight": torch.ones(3, 3), "log_scale": torch.tensor(2.6)}


def hugging_face_clip(tensors: Mapping[str, Tensor]) -> Tensors:
    """A whole CLIP model of `transformers` behind a prefix."""
    whole = {
        **tensors,
        "vision_model.embeddings.position_ids": torch.arange(257)[None],
        "text_model.encoder.layers.0.self_attn.q_proj.weight": torch.ones(3, 3),
        "text_projection.weight": torch.ones(3, 3),
        "logit_scale": torch.tensor(4.6),
    }
    return prefixed("clip.")(whole)


def bare_clip(tensors: Mapping[str, Tensor]) -> Tensors:
    """As a `CLIPVisionModel` without the name of its only part."""
    return {
        name.removeprefix("vision_model."): tensor
        for name, tensor in tensors.items()
        if name.startswith("vision_model.")
    }


def diffusers_vae(tensors: Mapping[str, Tensor]) -> Tensors:
    """Wan's VAE in the names of diffusers' class."""
    return {_diffusers_name(name): tensor for name, tensor in tensors.items()}


def scaled_fp8(tensors: Mapping[str, Tensor]) -> Tensors:
    """As Comfy-Org's scaled files: matrices in fp8, each with one scale."""
    scaled: Tensors = {"scaled_fp8": torch.empty(2, dtype=torch.float8_e4m3fn)}
    for name, tensor in tensors.items():
        if is_matrix(name, tensor):
            scale = tensor.float().abs().max() / 448
            scaled[name.removesuffix("weight") + "scale_weight"] = scale
            scaled[name] = (tensor.float() / scale).to(torch.float8_e4m3fn)
        else:
            scaled[name] = tensor
    return scaled


def plain_fp8(tensors: Mapping[str, Tensor]) -> Tensors:
    """As Kijai's fp8 files: matrices in fp8 without scales."""
    return {
        name: tensor.to(torch.float8_e4m3fn) if is_matrix(name, tensor) else tensor
        for name, tensor in tensors.items()
    }


def int8(tensors: Mapping[str, Tensor]) -> Tensors:
    """As ComfyUI's `comfy_quant` files: matrices in int8, each with one scale."""
    quantised: Tensors = {}
    for name, tensor in tensors.items():
        quantised[name] = tensor
        if is_matrix(name, tensor):
            stem = name.removesuffix("weight")
            scale = tensor.float().abs().max() / 127
            quantised[name] = (tensor.float() / scale).round().to(torch.int8)
            quantised[f"{stem}weight_scale"] = scale
            format = b'{"format": "int8_tensorwise"}'
            quantised[f"{stem}comfy_quant"] = torch.tensor(list(format), dtype=torch.uint8)
    return quantised


def decoded(tensors: Mapping[str, Tensor]) -> Tensors:
    """Give the values that a quantised file stands for, matrices in float32."""
    values: Tensors = {}
    for name, tensor in tensors.items():
        stem = name.removesuffix("weight")
        ends = [stem + end for end in ("scale_weight", "weight_scale") if stem + end in tensors]
        if name.endswith("weight") and ends:
            values[name] = tensor.float() * tensors[ends[0]]
        elif not name.endswith(("scale_weight", "weight_scale", "comfy_quant", "scaled_fp8")):
            values[name] = tensor.float() if is_matrix(name, tensor) else tensor
    return values


def is_matrix(name: str, tensor: Tensor) -> bool:
    """Tell whether a tensor is the weight of a linear layer or of a convolution."""
    embedding = "embedding" in name or name.startswith("shared.") or "_bias." in name
    return name.endswith(".weight") and tensor.ndim > 1 and not embedding


def _joined(tensors: Mapping[str, Tensor], names: Mapping[str, str], end: str) -> Tensors:
    """Rename, and join query, key and value of each layer."""
    spelled: Tensors = {}
    for name, tensor in tensors.items():
        if ".q_proj." in name:
            parts = [tensors[name.replace(".q_proj.", f".{part}_proj.")] for part in "qkv"]
            layer, leaf = name.split(".self_attn.q_proj.")
            spelled[f"{_replaced(layer + '.', names)}attn.{end}{leaf}"] = torch.cat(parts)
        elif ".k_proj." not in name and ".v_proj." not in name:
            spelled[_replaced(name, names)] = tensor
    return spelled


def _replaced(name: str, names: Mapping[str, str]) -> str:
    for ours, theirs in names.items():
        name = name.replace(ours, theirs)
    return name


def _diffusers_name(name: str) -> str:
    room, _, rest = name.partition(".")
    if room in ("conv1", "conv2"):
        return f"{'quant_conv' if room == 'conv1' else 'post_quant_conv'}.{rest}"
    kind, _, rest = rest.partition(".")
    if kind in ("conv1", "head"):
        return f"{room}." + f"{kind}.{rest}".replace("conv1.", "conv_in.").replace(
            "head.0.", "norm_out."
        ).replace("head.2.", "conv_out.")
    number, _, rest = rest.partition(".")
    layer = int(number)
    for theirs, ours in _VAE_LEAVES.items():
        rest = rest.replace(ours, theirs)
    if kind == "middle":
        return f"{room}.mid_block.{('resnets.0', 'attentions.0', 'resnets.1')[layer]}.{rest}"
    if kind == "downsamples":
        return f"{room}.down_blocks.{layer}.{rest}"
    place = "upsamplers.0" if layer % 4 == 3 else f"resnets.{layer % 4}"
    return f"{room}.up_blocks.{layer // 4}.{place}.{rest}"
