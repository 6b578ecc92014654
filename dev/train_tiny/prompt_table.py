"""Encoded prompts in a file, for training machines without tokenizer and text encoder."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

FILE_NAME = "prompts.safetensors"

_PREFIX = "prompt:"  # the empty prompt is one too


def save_prompts(path: Path, prompts: Mapping[str, Tensor]) -> None:
    """Write each prompt's text tokens `(1, L, C)` atomically."""
    tensors = {f"{_PREFIX}{prompt}": tokens[0].half() for prompt, tokens in prompts.items()}
    draft = path.with_suffix(".part")
    save_file(tensors, draft)
    draft.replace(path)


def load_prompts(path: Path) -> dict[str, Tensor]:
    """Read the file of `save_prompts`: the text tokens `(L, C)` float32 of every prompt."""
    stored = load_file(path)
    return {name.removeprefix(_PREFIX): tokens.to(torch.float32) for name, tokens in stored.items()}
