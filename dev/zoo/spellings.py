"""Names of one model in other packagings, and states of loaded models under the zoo's names."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Literal

import torch
from torch import Tensor, nn

from .codecs import Codec
from .stored import Stored, encode, is_matrix
from .values import autoencoder

_DIFFUSERS_VAE = (
    (r"^conv1\.", "quant_conv."),
    (r"^conv2\.", "post_quant_conv."),
    (r"coder\.conv1\.", "coder.conv_in."),
    (r"\.head\.0\.", ".norm_out."),
    (r"\.head\.2\.", ".conv_out."),
    (r"\.middle\.0\.", ".mid_block.resnets.0."),
    (r"\.middle\.1\.", ".mid_block.attentions.0."),
    (r"\.middle\.2\.", ".mid_block.resnets.1."),
    (r"\.downsamples\.", ".down_blocks."),
    (r"\.residual\.0\.", ".norm1."),
    (r"\.residual\.2\.", ".conv1."),
    (r"\.residual\.3\.", ".norm2."),
    (r"\.residual\.6\.", ".conv2."),
    (r"\.shortcut\.", ".conv_shortcut."),
)


def diffusers_vae(name: str) -> str:
    """Turn Wan's name of an autoencoder's tensor into diffusers'."""
    for theirs, ours in _DIFFUSERS_VAE:
        name = re.sub(theirs, ours, name)
    if flat := re.match(r"decoder\.upsamples\.(\d+)\.", name):
        block, layer = divmod(int(flat[1]), 4)
        place = f"resnets.{layer}" if layer < 3 else "upsamplers.0"
        name = f"decoder.up_blocks.{block}.{place}.{name[flat.end() :]}"
    return name


def wan_vae_state(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Give the state of diffusers' autoencoder under Wan's names."""
    return {name: state[diffusers_vae(name)] for name in autoencoder()}


def transformers_state(model: nn.Module) -> dict[str, Tensor]:
    """Give the state of an encoder of `transformers`, a weight norm multiplied out."""
    state = {
        name.removeprefix("vision_model."): tensor for name, tensor in model.state_dict().items()
    }
    for name, module in model.named_modules():
        if name.endswith("pos_conv_embed.conv"):
            state[f"{name}.weight"] = module.weight
    return state


_DIFFUSERS_WAN = (
    (r"\.self_attn\.([qkv])\.", r".attn1.to_\1."),
    (r"\.self_attn\.o\.", ".attn1.to_out.0."),
    (r"\.self_attn\.", ".attn1."),
    (r"\.cross_attn\.([qkv])\.", r".attn2.to_\1."),
    (r"\.cross_attn\.([kv])_img\.", r".attn2.add_\1_proj."),
    (r"\.cross_attn\.norm_k_img\.", ".attn2.norm_added_k."),
    (r"\.cross_attn\.o\.", ".attn2.to_out.0."),
    (r"\.cross_attn\.", ".attn2."),
    (r"\.ffn\.0\.", ".ffn.net.0.proj."),
    (r"\.ffn\.2\.", ".ffn.net.2."),
    (r"\.norm3\.", ".norm2."),
    (r"(blocks\.\d+)\.modulation$", r"\1.scale_shift_table"),
    (r"^head\.modulation$", "scale_shift_table"),
    (r"^head\.head\.", "proj_out."),
    (r"^(time|text)_embedding\.0\.", r"condition_embedder.\1_embedder.linear_1."),
    (r"^(time|text)_embedding\.2\.", r"condition_embedder.\1_embedder.linear_2."),
    (r"^time_projection\.1\.", "condition_embedder.time_proj."),
    (r"^img_emb\.proj\.0\.", "condition_embedder.image_embedder.norm1."),
    (r"^img_emb\.proj\.1\.", "condition_embedder.image_embedder.ff.net.0.proj."),
    (r"^img_emb\.proj\.3\.", "condition_embedder.image_embedder.ff.net.2."),
    (r"^img_emb\.proj\.4\.", "condition_embedder.image_embedder.norm2."),
)


def diffusers_wan(name: str) -> str:
    """Turn Wan's name of a transformer's tensor into diffusers'."""
    for ours, theirs in _DIFFUSERS_WAN:
        renamed = re.sub(ours, theirs, name)
        if renamed != name:
            return renamed
    return name


def _renamed(name: str, rules: tuple[tuple[str, str], ...]) -> str:
    for ours, theirs in rules:
        name = re.sub(ours, theirs, name)
    return name


def llama_umt5(name: str) -> str:
    """Turn `transformers`' name of a UMT5 tensor into llama.cpp's."""
    return _renamed(name, _LLAMA_UMT5)


_LLAMA_UMT5 = (
    (r"^shared\.", "token_embd."),
    (r"^encoder\.final_layer_norm\.", "enc.output_norm."),
    (r"^encoder\.block\.", "enc.blk."),
    (r"layer\.0\.SelfAttention\.relative_attention_bias", "attn_rel_b"),
    (r"layer\.0\.SelfAttention\.", "attn_"),
    (r"layer\.0\.layer_norm", "attn_norm"),
    (r"layer\.1\.layer_norm", "ffn_norm"),
    (r"layer\.1\.DenseReluDense\.wi_0", "ffn_gate"),
    (r"layer\.1\.DenseReluDense\.wi_1", "ffn_up"),
    (r"layer\.1\.DenseReluDense\.wo", "ffn_down"),
)


def wan_umt5(name: str) -> str:
    """Turn `transformers`' name of a UMT5 tensor into that of Wan's own `t5.py`."""
    return _renamed(name, _WAN_UMT5)


_WAN_UMT5 = (
    (r"^shared\.", "token_embedding."),
    (r"^encoder\.final_layer_norm\.", "norm."),
    (r"^encoder\.block\.", "blocks."),
    (r"layer\.0\.SelfAttention\.relative_attention_bias", "pos_embedding.embedding"),
    (r"layer\.0\.SelfAttention\.", "attn."),
    (r"layer\.0\.layer_norm", "norm1"),
    (r"layer\.1\.layer_norm", "norm2"),
    (r"layer\.1\.DenseReluDense\.wi_0", "ffn.gate.0"),
    (r"layer\.1\.DenseReluDense\.wi_1", "ffn.fc1"),
    (r"layer\.1\.DenseReluDense\.wo", "ffn.fc2"),
)

_WAN_CLIP = (
    (r"^embeddings\.patch_embedding", "visual.patch_embedding"),
    (r"^pre_layrnorm", "visual.pre_norm"),
    (r"^post_layernorm", "visual.post_norm"),
    (r"^encoder\.layers\.(\d+)", r"visual.transformer.\1"),
    (r"layer_norm", "norm"),
    (r"self_attn\.out_proj", "attn.proj"),
    (r"self_attn\.qkv", "attn.to_qkv"),
    (r"mlp\.fc1", "mlp.0"),
    (r"mlp\.fc2", "mlp.2"),
)
_LAION_CLIP = (
    (r"^embeddings\.patch_embedding", "visual.conv1"),
    (r"^pre_layrnorm", "visual.ln_pre"),
    (r"^post_layernorm", "visual.ln_post"),
    (r"^encoder\.layers\.(\d+)", r"visual.transformer.resblocks.\1"),
    (r"layer_norm", "ln_"),
    (r"self_attn\.out_proj", "attn.out_proj"),
    (r"self_attn\.qkv\.", "attn.in_proj_"),
    (r"mlp\.fc1", "mlp.c_fc"),
    (r"mlp\.fc2", "mlp.c_proj"),
)


def open_clip(
    vision: Mapping[str, Tensor], codec: Codec, *, kind: Literal["wan", "laion"]
) -> Stored:
    """Store a CLIP vision tower as Wan's `clip.py` or LAION's files do: q, k and v are one tensor.

    Args:
        vision: The tower, by `transformers`' names without `vision_model.`.
        codec: Of the linear layers.
        kind: Whose names.
    """
    rest = {name: value for name, value in vision.items() if "self_attn" not in name}
    rest |= {name: value for name, value in vision.items() if "out_proj" in name}
    for name, value in vision.items():
        if "q_proj" in name:
            shares = [value, *(vision[name.replace("q_proj", f"{x}_proj")] for x in "kv")]
            rest[name.replace("q_proj", "qkv")] = torch.cat(shares)
    stored = encode(rest, codec, layers=lambda n, v: is_matrix(n, v) and "embedding" not in n)
    tensors = dict(stored.tensors)
    head = tensors.pop("visual_projection.weight").T
    cls, places = (
        tensors.pop(f"embeddings.{n}") for n in ("class_embedding", "position_embedding.weight")
    )
    tensors = {
        _renamed(n, _WAN_CLIP if kind == "wan" else _LAION_CLIP): t for n, t in tensors.items()
    }
    if kind == "wan":
        own = {"cls_embedding": cls[None, None], "pos_embedding": places[None], "head": head}
    else:
        own = {"class_embedding": cls, "positional_embedding": places, "proj": head}
    tensors |= {f"visual.{name}": tensor for name, tensor in own.items()}
    decoded = dict(stored.values)
    for name in [name for name in decoded if "qkv" in name]:
        shares = decoded.pop(name).chunk(3)
        decoded |= {name.replace("qkv", f"{x}_proj"): s for x, s in zip("qkv", shares, strict=True)}
    return Stored(tensors, decoded)
