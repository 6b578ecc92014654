"""All variants of the zoo."""

from __future__ import annotations

from . import (
    gguf_rows,
    lookalike_rows,
    lora_rows,
    safetensors_rows,
    scaled_rows,
    text_rows,
    vae_rows,
    vision_rows,
    voice_rows,
)
from .files import Variant

_THIRD = 3


def variants() -> list[Variant]:
    """Give every variant, by family."""
    modules = (
        gguf_rows,
        safetensors_rows,
        scaled_rows,
        text_rows,
        vision_rows,
        voice_rows,
        vae_rows,
        lora_rows, lookalike_rows,
    )  # fmt: skip
    found = [variant for module in modules for variant in module.rows()]
    families = list(dict.fromkeys(variant.family for variant in found))
    return sorted(found, key=lambda variant: families.index(variant.family))


def chosen(first: int = 0) -> list[Variant]:
    """Give a third, for the tests: every third variant, so that each kind is among them.

    Args:
        first: Which third, from 0.
    """
    return variants()[first::_THIRD]
