"""Keys of LoRA files: which layer of the model each names, and what its tensor is there.

Layers are named as upstream or as diffusers names them, with dots or (Kohya, LyCORIS) underscores,
behind any prefix. Endings are those of PEFT (`lora_A`), Kohya (`lora_down`), diffusers
(`lora.down`) and LyCORIS (`hada_*`, `lokr_*`), and those of whole differences (`diff`, `diff_b`,
and `diff_m` of lightx2v for modulation).
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import NamedTuple

_PREFIXES = (
    *("base_model.model.", "model.", "diffusion_model.", "transformer.", "unet.", "net.", "dit."),
    *("pipe.", "module.", "lora_unet__", "lora_unet_", "lora_transformer_", "lycoris_"),
)
_ENDING = re.compile(
    r"\.(?:(?P<down>lora_A(?:\.\w+)?\.weight|lora_A"
    r"|lora_down\.weight|lora\.down\.weight|lora_linear_layer\.down\.weight)"
    r"|(?P<up>lora_B(?:\.\w+)?\.weight|lora_B"
    r"|lora_up\.weight|lora\.up\.weight|lora_linear_layer\.up\.weight)"
    r"|(?P<magnitude>dora_scale|lora_magnitude_vector(?:\.\w+)*)"
    r"|(?P<alpha>alpha)"
    r"|(?P<own>hada_w[12]_[ab]|hada_t[12]|lokr_w[12](?:_[ab])?|lokr_t2)"
    r"|(?P<weight>diff|w_norm)|(?P<bias>diff_b|b_norm)|(?P<modulation>diff_m))$"
)
_TO_DIFFUSERS = tuple(
    (re.compile(ours), theirs)
    for ours, theirs in (
        (r"^(blocks\.\d+)\.self_attn\.([qkv])$", r"\1.attn1.to_\2"),
        (r"^(blocks\.\d+)\.self_attn\.o$", r"\1.attn1.to_out.0"),
        (r"^(blocks\.\d+)\.self_attn\.(norm_[qk])$", r"\1.attn1.\2"),
        (r"^(blocks\.\d+)\.cross_attn\.([qkv])$", r"\1.attn2.to_\2"),
        (r"^(blocks\.\d+)\.cross_attn\.o$", r"\1.attn2.to_out.0"),
        (r"^(blocks\.\d+)\.cross_attn\.(norm_[qk])$", r"\1.attn2.\2"),
        (r"^(blocks\.\d+)\.cross_attn\.([kv])_img$", r"\1.attn2.add_\2_proj"),
        (r"^(blocks\.\d+)\.cross_attn\.norm_k_img$", r"\1.attn2.norm_added_k"),
        (r"^(blocks\.\d+)\.norm3$", r"\1.norm2"),
        (r"^(blocks\.\d+)\.ffn\.0$", r"\1.ffn.net.0.proj"),
        (r"^(blocks\.\d+)\.ffn\.2$", r"\1.ffn.net.2"),
        (r"^(blocks\.\d+)\.modulation$", r"\1.scale_shift_table"),
        (r"^(time|text)_embedding\.0$", r"condition_embedder.\1_embedder.linear_1"),
        (r"^(time|text)_embedding\.2$", r"condition_embedder.\1_embedder.linear_2"),
        (r"^time_projection\.1$", "condition_embedder.time_proj"),
        (r"^img_emb\.proj\.0$", "condition_embedder.image_embedder.norm1"),
        (r"^img_emb\.proj\.1$", "condition_embedder.image_embedder.ff.net.0.proj"),
        (r"^img_emb\.proj\.3$", "condition_embedder.image_embedder.ff.net.2"),
        (r"^img_emb\.proj\.4$", "condition_embedder.image_embedder.norm2"),
        (r"^head\.head$", "proj_out"),
        (r"^head\.modulation$", "scale_shift_table"),
    )
)
"""Upstream's names to those of diffusers' Wan transformer."""


class Place(NamedTuple):
    """What a key names.

    Attributes:
        stem: The key without prefixes and ending: the layer, as the file names it.
        path: The model's module or tensor of that name; None if it has none.
        role: What the tensor is there: `down`, `up`, `alpha`, `magnitude`, a LyCORIS factor such as
            `lokr_w1`, or the `weight`, `bias` or `modulation` of which it is a difference.
            None if the ending is unknown.
        is_ours: Whether the key is for the model, known to it or not, and not for another one.
    """

    stem: str
    path: str | None
    role: str | None
    is_ours: bool


class LayerNames:
    """The names that files have for the layers of one model."""

    def __init__(self, tensors: Iterable[str]) -> None:
        """Collect the names.

        Args:
            tensors: Names of the model's tensors.
        """
        paths = {name for tensor in tensors for name in (tensor, tensor.rpartition(".")[0])}
        dotted = {name: path for path in paths for name in (path, _in_diffusers(path))}
        self._paths = {name.replace(".", "_"): path for name, path in dotted.items()} | dotted
        self._parts = {name.partition(".")[0] for name in dotted if name}

    def find(self, key: str) -> Place:
        """Find the layer and the role of a key."""
        ending = _ENDING.search(key)
        stem, prefix = (key[: ending.start()] if ending else key), ""
        while stem not in self._paths:
            found = next((p for p in _PREFIXES if stem.startswith(p)), None)
            if found is None:
                break
            stem, prefix = stem[len(found) :], found
        role = ending.lastgroup if ending else None
        if ending and role == "own":
            role = ending["own"]
        part = stem.partition(".")[0]
        with_underscores = prefix.endswith("_") and part.startswith(
            tuple(f"{name}_" for name in self._parts)
        )
        return Place(
            stem, self._paths.get(stem), role, is_ours=part in self._parts or with_underscores
        )


def _in_diffusers(path: str) -> str:
    for ours, theirs in _TO_DIFFUSERS:
        path, count = ours.subn(theirs, path)
        if count:
            break
    return path
