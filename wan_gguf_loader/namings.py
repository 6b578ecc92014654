"""Whose tensor names a file uses, and the model's own name of each.

Packagings of one model differ in prefix and spelling. A `Naming` is one spelling: its marks are
names that every file in it has, and its rules turn its names into ours, which are upstream's for
the transformer and the VAE, and those of `transformers` for the encoders. A new packaging is a new
row.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Literal, NamedTuple

from .errors import GGUFError

Part = Literal["transformer", "text_encoder", "clip_vision", "wav2vec2", "vae"]


class Naming(NamedTuple):
    """One spelling of the names of one part.

    Attributes:
        title: What messages call it.
        part: The part that it spells.
        marks: Names without prefix; one of them tells the naming.
        rules: Patterns and replacements, applied in this order to names after the prefix. A result
            with spaces names equal shares of the tensor's rows.
        beside: Our names of tensors that such files hold for other purposes than ours.
    """

    title: str
    part: Part
    marks: tuple[str, ...]
    rules: tuple[tuple[re.Pattern[str], str], ...] = ()
    beside: re.Pattern[str] | None = None


class Share(NamedTuple):
    """A stored tensor, or share `number` of `of` equal ones of its rows."""

    stored: str
    number: int = 0
    of: int = 1


def _rules(*rows: tuple[str, str]) -> tuple[tuple[re.Pattern[str], str], ...]:
    return tuple((re.compile(theirs), ours) for theirs, ours in rows)


DIFFUSERS_LAYERS = _rules(
    (r"^(blocks\.\d+)\.attn1\.to_([qkv])\b", r"\1.self_attn.\2"),
    (r"^(blocks\.\d+)\.attn1\.to_out\.0\b", r"\1.self_attn.o"),
    (r"^(blocks\.\d+)\.attn1\.norm_([qk])\b", r"\1.self_attn.norm_\2"),
    (r"^(blocks\.\d+)\.attn2\.to_([qkv])\b", r"\1.cross_attn.\2"),
    (r"^(blocks\.\d+)\.attn2\.to_out\.0\b", r"\1.cross_attn.o"),
    (r"^(blocks\.\d+)\.attn2\.norm_([qk])\b", r"\1.cross_attn.norm_\2"),
    (r"^(blocks\.\d+)\.attn2\.add_([kv])_proj\b", r"\1.cross_attn.\2_img"),
    (r"^(blocks\.\d+)\.attn2\.norm_added_k\b", r"\1.cross_attn.norm_k_img"),
    (r"^(blocks\.\d+)\.norm2\b", r"\1.norm3"),
    (r"^(blocks\.\d+)\.ffn\.net\.0\.proj\b", r"\1.ffn.0"),
    (r"^(blocks\.\d+)\.ffn\.net\.2\b", r"\1.ffn.2"),
    (r"^(blocks\.\d+)\.scale_shift_table$", r"\1.modulation"),
    (r"^condition_embedder\.(time|text)_embedder\.linear_1\b", r"\1_embedding.0"),
    (r"^condition_embedder\.(time|text)_embedder\.linear_2\b", r"\1_embedding.2"),
    (r"^condition_embedder\.time_proj\b", "time_projection.1"),
    (r"^condition_embedder\.image_embedder\.norm1\b", "img_emb.proj.0"),
    (r"^condition_embedder\.image_embedder\.ff\.net\.0\.proj\b", "img_emb.proj.1"),
    (r"^condition_embedder\.image_embedder\.ff\.net\.2\b", "img_emb.proj.3"),
    (r"^condition_embedder\.image_embedder\.norm2\b", "img_emb.proj.4"),
    (r"^proj_out\b", "head.head"),
    (r"^scale_shift_table$", "head.modulation"),
)
"""Layer names of diffusers' Wan transformer to upstream's."""

_LLAMA_UMT5 = _rules(
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
_WAN_UMT5 = _rules(
    (r"^token_embedding\.", "shared."),
    (r"^norm\.", "encoder.final_layer_norm."),
    (r"^blocks\.(\d+)\.norm1\.", r"encoder.block.\1.layer.0.layer_norm."),
    (
        r"^blocks\.(\d+)\.pos_embedding\.embedding\.",
        r"encoder.block.\1.layer.0.SelfAttention.relative_attention_bias.",
    ),
    (r"^blocks\.(\d+)\.attn\.([qkvo])\.", r"encoder.block.\1.layer.0.SelfAttention.\2."),
    (r"^blocks\.(\d+)\.norm2\.", r"encoder.block.\1.layer.1.layer_norm."),
    (r"^blocks\.(\d+)\.ffn\.gate\.0\.", r"encoder.block.\1.layer.1.DenseReluDense.wi_0."),
    (r"^blocks\.(\d+)\.ffn\.fc1\.", r"encoder.block.\1.layer.1.DenseReluDense.wi_1."),
    (r"^blocks\.(\d+)\.ffn\.fc2\.", r"encoder.block.\1.layer.1.DenseReluDense.wo."),
)
_UMT5_BESIDE = re.compile(r"(^|\.)(decoder\.|lm_head\.|embed_tokens\.|spiece_model$)")
"""The decoder, the embedding a second time, and what `tokenizer.py` reads."""

_OPEN_CLIP = _rules(
    (r"^class_embedding$", "vision_model.embeddings.class_embedding"),
    (r"^positional_embedding$", "vision_model.embeddings.position_embedding.weight"),
    (r"^conv1\.", "vision_model.embeddings.patch_embedding."),
    (r"^ln_pre\.", "vision_model.pre_layrnorm."),
    (r"^ln_post\.", "vision_model.post_layernorm."),
    (r"^proj$", "visual_projection"),
    (r"^transformer\.resblocks\.(\d+)\.", r"vision_model.encoder.layers.\1."),
    (r"\.ln_([12])\.", r".layer_norm\1."),
    (r"\.mlp\.c_fc\.", ".mlp.fc1."),
    (r"\.mlp\.c_proj\.", ".mlp.fc2."),
    (r"\.attn\.out_proj\.", ".self_attn.out_proj."),
    (
        r"^(.+)\.attn\.in_proj_(weight|bias)$",
        r"\1.self_attn.q_proj.\2 \1.self_attn.k_proj.\2 \1.self_attn.v_proj.\2",
    ),
)
_WAN_CLIP = _rules(
    (r"^cls_embedding$", "vision_model.embeddings.class_embedding"),
    (r"^pos_embedding$", "vision_model.embeddings.position_embedding.weight"),
    (r"^patch_embedding\.", "vision_model.embeddings.patch_embedding."),
    (r"^pre_norm\.", "vision_model.pre_layrnorm."),
    (r"^post_norm\.", "vision_model.post_layernorm."),
    (r"^head$", "visual_projection"),
    (r"^transformer\.(\d+)\.", r"vision_model.encoder.layers.\1."),
    (r"\.norm([12])\.", r".layer_norm\1."),
    (r"\.mlp\.0\.", ".mlp.fc1."),
    (r"\.mlp\.2\.", ".mlp.fc2."),
    (r"\.attn\.proj\.", ".self_attn.out_proj."),
    (
        r"^(.+)\.attn\.to_qkv\.(weight|bias)$",
        r"\1.self_attn.q_proj.\2 \1.self_attn.k_proj.\2 \1.self_attn.v_proj.\2",
    ),
)
_CLIP_BESIDE = re.compile(
    r"(^|\.)(text_model|textual|text|transformer|token_embedding|positional_embedding|ln_final"
    r"|text_projection|visual_projection|log_scale|logit_scale|position_ids)(\.|$)"
)
"""The text tower, and the way into the space that both share."""

_DIFFUSERS_VAE_LAYERS = _rules(
    (r"^quant_conv\.", "conv1."),
    (r"^post_quant_conv\.", "conv2."),
    (r"\.conv_in\.", ".conv1."),
    (r"\.norm_out\.", ".head.0."),
    (r"\.conv_out\.", ".head.2."),
    (r"\.mid_block\.resnets\.0\.", ".middle.0."),
    (r"\.mid_block\.attentions\.0\.", ".middle.1."),
    (r"\.mid_block\.resnets\.1\.", ".middle.2."),
    (r"\.down_blocks\.", ".downsamples."),
    # Wan numbers the decoder's layers in one list: three residual layers and an upsampler a block.
    *(
        (rf"\.up_blocks\.{block}\.{layer}\.", f".upsamples.{4 * block + number}.")
        for block in range(4)
        for number, layer in enumerate(
            (r"resnets\.0", r"resnets\.1", r"resnets\.2", r"upsamplers\.0")
        )
    ),
    (r"\.norm1\.", ".residual.0."),
    (r"(?<=\d)\.conv1\.", ".residual.2."),
    (r"\.norm2\.", ".residual.3."),
    (r"\.conv2\.", ".residual.6."),
    (r"\.conv_shortcut\.", ".shortcut."),
)
DIFFUSERS_VAE = Naming(
    "diffusers' names", "vae", ("decoder.conv_in.weight",), _DIFFUSERS_VAE_LAYERS
)
"""Also the names of diffusers' class `AutoencoderKLWan`."""

NAMINGS: tuple[Naming, ...] = (
    Naming("Wan's own names", "transformer", ("blocks.0.self_attn.q.weight",)),
    Naming("diffusers' names", "transformer", ("blocks.0.attn1.to_q.weight",), DIFFUSERS_LAYERS),
    Naming(
        "Wan's own names, audio layers only",
        "transformer",
        ("audio_proj.proj1.weight", "multitalk_audio_proj.proj1.weight"),
    ),
    Naming(
        "transformers' names",
        "text_encoder",
        ("encoder.block.0.layer.0.SelfAttention.q.weight",),
        beside=_UMT5_BESIDE,
    ),
    Naming(
        "llama.cpp's names", "text_encoder", ("enc.blk.0.attn_q.weight",), _LLAMA_UMT5, _UMT5_BESIDE
    ),
    Naming(
        "Wan's own names",
        "text_encoder",
        ("blocks.0.pos_embedding.embedding.weight",),
        _WAN_UMT5,
        _UMT5_BESIDE,
    ),
    Naming(
        "transformers' names",
        "clip_vision",
        ("vision_model.encoder.layers.0.self_attn.q_proj.weight",),
        beside=_CLIP_BESIDE,
    ),
    Naming(
        "transformers' names without 'vision_model.'",
        "clip_vision",
        ("pre_layrnorm.weight",),
        _rules((r"^(?=(embeddings|encoder|pre_layrnorm|post_layernorm)\.)", "vision_model.")),
        _CLIP_BESIDE,
    ),
    Naming("open_clip's names", "clip_vision", ("ln_pre.weight",), _OPEN_CLIP, _CLIP_BESIDE),
    Naming(
        "Wan's own names",
        "clip_vision",
        ("transformer.0.attn.to_qkv.weight",),
        _WAN_CLIP,
        _CLIP_BESIDE,
    ),
    Naming(
        "transformers' names",
        "wav2vec2",
        ("feature_extractor.conv_layers.0.conv.weight",),
        _rules(
            (r"\.conv\.weight_g$", ".conv.parametrizations.weight.original0"),
            (r"\.conv\.weight_v$", ".conv.parametrizations.weight.original1"),
        ),
        re.compile(r"(^|\.)(quantizer|project_hid|project_q|lm_head|masked_spec_embed)(\.|$)"),
    ),
    Naming("Wan's own names", "vae", ("decoder.conv1.weight",)),
    DIFFUSERS_VAE,
)

_ALWAYS = _rules((r"^multitalk_audio_proj\.", "audio_proj."))
"""Renames of the transformer in every naming: Kijai's nodes save adapters so."""
_UNKNOWN = Naming("names of no known model", "transformer", ())
_WRAPPERS = ("model.diffusion_model.", "diffusion_model.")
"""Prefixes of the transformer in files without any mark, such as LoRAs."""


class Spelling(NamedTuple):
    """How a file spells the names of one part: the naming, and the prefix before its names."""

    naming: Naming
    prefix: str


def recognise(
    names: Iterable[str], *, part: Part | None = None, path: Path | None = None
) -> Spelling:
    """Tell how a file spells its names.

    Args:
        names: Names in the file.
        part: The part that is wanted of a file with several; by default the first in `NAMINGS`.
        path: The file, for the error.

    Raises:
        GGUFError: If the part is there under two prefixes, with as many tensors.
    """
    names = tuple(names)
    found: dict[Naming, set[str]] = {}
    for naming in NAMINGS:
        for mark in naming.marks:
            prefixes = {n.removesuffix(mark) for n in names if n.endswith(mark)}
            if prefixes := {p for p in prefixes if not p or p.endswith(".")}:
                found.setdefault(naming, set()).update(prefixes)
    naming = next((n for n in found if n.part == part), next(iter(found), _UNKNOWN))
    if naming is _UNKNOWN:
        wrapper = next((w for w in _WRAPPERS if any(n.startswith(w) for n in names)), "")
        return Spelling(_UNKNOWN, wrapper)
    owners = Counter(_prefix_of(name, found[naming]) for name in names)
    (prefix, most), *others = [pair for pair in owners.most_common() if pair[0] is not None]
    if others and others[0][1] == most:
        raise GGUFError(
            f"the file holds the model twice, under {_listed(found[naming])}. Keep one of the two.",
            path=path,
        )
    assert prefix is not None
    return Spelling(naming, prefix)


def _prefix_of(name: str, prefixes: Iterable[str]) -> str | None:
    """Give the longest prefix of a name; None if it has none of them."""
    return max((p for p in prefixes if name.startswith(p)), key=len, default=None)


def model_names(
    names: Iterable[str], spelling: Spelling, *, path: Path | None = None
) -> dict[str, Share]:
    """Tell which stored tensor each tensor of the model is, or is a share of.

    Args:
        names: Names in the file; those without the prefix belong to other parts and stay as they
            are.
        spelling: How the file spells them.
        path: The file, for the error.

    Returns:
        By the model's names, in the order of the file.

    Raises:
        GGUFError: If two tensors have one name.
    """
    naming, prefix = spelling
    always = _ALWAYS if naming.part == "transformer" else ()
    shares: dict[str, Share] = {}
    for stored in names:
        own = stored.startswith(prefix) and stored != prefix
        name = stored[len(prefix) :] if own else stored
        ours = _renamed(name, (*(naming.rules if own else ()), *always)).split(" ")
        for index, name in enumerate(ours):
            if name in shares:
                raise GGUFError(
                    f"tensors {shares[name].stored!r} and {stored!r} are the same tensor {name!r}: "
                    "the file holds the model twice. Keep one of the two.",
                    path=path,
                )
            shares[name] = Share(stored, index, len(ours))
    return shares


def _renamed(name: str, rules: Iterable[tuple[re.Pattern[str], str]]) -> str:
    for theirs, ours in rules:
        name = theirs.sub(ours, name)
    return name


def _listed(prefixes: Iterable[str]) -> str:
    return " and ".join(f"'{prefix}'" if prefix else "no prefix" for prefix in sorted(prefixes))
