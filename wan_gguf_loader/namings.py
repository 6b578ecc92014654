"""Whose tensor names a file uses, and the model's own name of each.

Packagings of one model differ in prefix and spelling. A `Naming` is one spelling: its marks are
names that every file in it has, and its rules turn its names into ours, which are upstream's for
the transformer and those of `transformers` for the encoders. A new packaging is a new row.
"""

from __future__ import annotations

import re
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
        rules: Patterns and replacements; the first that matches a name is applied. Several
            replacements, separated by spaces, are equal shares of the tensor's rows.
    """

    title: str
    part: Part
    marks: tuple[str, ...]
    rules: tuple[tuple[re.Pattern[str], str], ...] = ()


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
    ),
    Naming(
        "llama.cpp's names",
        "text_encoder",
        ("enc.blk.0.attn_q.weight",),
        _rules(
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
        ),
    ),
    Naming(
        "transformers' names",
        "clip_vision",
        ("vision_model.encoder.layers.0.self_attn.q_proj.weight",),
    ),
    Naming("transformers' names", "wav2vec2", ("feature_extractor.conv_layers.0.conv.weight",)),
    Naming("Wan's own names", "vae", ("decoder.conv1.weight",)),
    Naming("diffusers' names", "vae", ("decoder.conv_in.weight",)),
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
        GGUFError: If the part is there under two prefixes.
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
    if len(found[naming]) > 1:
        raise GGUFError(
            f"the file holds the model twice, under {_listed(found[naming])}. Keep one of the two.",
            path=path,
        )
    return Spelling(naming, *found[naming])


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
    rules = (*naming.rules, *(_ALWAYS if naming.part == "transformer" else ()))
    shares: dict[str, Share] = {}
    for stored in names:
        ours = _renamed(stored.removeprefix(prefix) or stored, rules).split(" ")
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
        renamed, count = theirs.subn(ours, name)
        if count:
            return renamed
    return name


def _listed(prefixes: Iterable[str]) -> str:
    return " and ".join(f"'{prefix}'" if prefix else "no prefix" for prefix in sorted(prefixes))
