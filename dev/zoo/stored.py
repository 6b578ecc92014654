"""A model as the tensors of a safetensors file: layers in one form, the rest in another."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors.torch import save_file
from torch import Tensor

from .codecs import Codec, plain
from .files import Loads, Written
from .values import Values

BLOCK_LAYER = re.compile(r"blocks\.\d+\..+\.weight")
"""Names of linear layers of blocks, and of their norms."""


class Stored(NamedTuple):
    """The tensors of a file, and what they stand for.

    Attributes:
        tensors: By their names in the file.
        values: By the model's names, float32.
        formats: Descriptions of `comfy_quant` by layer, where the metadata holds them.
    """

    tensors: Mapping[str, Tensor]
    values: Values
    formats: Mapping[str, Mapping[str, Any]] = {}

    def renamed(self, rename: Callable[[str], str]) -> Stored:
        """Give every tensor another name in the file."""
        tensors = {rename(name): tensor for name, tensor in self.tensors.items()}
        formats = {
            rename(f"{name}.weight")[: -len(".weight")]: f for name, f in self.formats.items()
        }
        return Stored(tensors, self.values, formats)

    def prefixed(self, prefix: str) -> Stored:
        """Put a prefix before every name."""
        return self.renamed(lambda name: prefix + name)

    def plus(self, **tensors: Tensor) -> Stored:
        """Add tensors that change nothing."""
        return self._replace(tensors={**self.tensors, **tensors})

    def joined(self, other: Stored) -> Stored:
        """Put another model into the same file."""
        return Stored(
            {**self.tensors, **other.tensors},
            {**self.values, **other.values},
            {**self.formats, **other.formats},
        )

    @property
    def metadata(self) -> dict[str, str]:
        """Metadata of the file."""
        if not self.formats:
            return {"format": "pt"}
        layers = json.dumps({"format_version": "1.0", "layers": self.formats})
        return {"_quantization_metadata": layers}

    def save(self, path: Path) -> Written:
        """Write one file."""
        save_file({n: _own(tensor) for n, tensor in self.tensors.items()}, path, self.metadata)
        return Written(path, Loads(self.values))


def is_block_layer(name: str, value: Tensor) -> bool:
    """Tell whether a tensor is the weight of a linear layer of a block."""
    return value.ndim == 2 and BLOCK_LAYER.fullmatch(name) is not None


def is_matrix(name: str, value: Tensor) -> bool:
    """Tell whether a tensor is the weight of any linear layer."""
    return value.ndim == 2 and name.endswith(".weight")


def is_weight(name: str, value: Tensor) -> bool:
    """Tell whether a tensor is the weight of a linear layer or a convolution."""
    return value.ndim > 1 and name.endswith(".weight")


def encode(
    values: Values,
    codec: Codec,
    *,
    rest: torch.dtype | Callable[[str], torch.dtype] = torch.float16,
    layers: Callable[[str, Tensor], bool] = is_block_layer,
) -> Stored:
    """Store the layers by a codec and round all other tensors to a dtype."""
    tensors: dict[str, Tensor] = {}
    decoded: dict[str, Tensor] = {}
    formats: dict[str, Mapping[str, Any]] = {}
    for name, value in values.items():
        if layers(name, value):
            stem = name.removesuffix(".weight")
            encoded = codec(value)
            tensors |= {stem + end: tensor for end, tensor in encoded.tensors.items()}
            if encoded.format is not None:
                formats[stem] = encoded.format
            decoded[name] = encoded.value
        else:
            dtype = rest if isinstance(rest, torch.dtype) else rest(name)
            tensors[name] = plain(dtype)(value).tensors[".weight"]
            decoded[name] = tensors[name].float()
    return Stored(tensors, decoded, formats)


def save_shards(stored: Stored, folder: Path, *, stem: str, count: int, index: bool) -> list[Path]:
    """Write the tensors into several files with names of Hugging Face, and perhaps an index."""
    names = list(stored.tensors)
    step = -(-len(names) // count)
    paths, places = [], {}
    for number in range(count):
        path = folder / f"{stem}-{number + 1:05}-of-{count:05}.safetensors"
        part = names[number * step : (number + 1) * step]
        save_file({n: _own(stored.tensors[n]) for n in part}, path, stored.metadata)
        places |= dict.fromkeys(part, path.name)
        paths.append(path)
    if index:
        text = json.dumps({"metadata": {"total_size": 1}, "weight_map": places})
        (folder / f"{stem}.safetensors.index.json").write_text(text)
    return paths


def _own(tensor: Tensor) -> Tensor:
    """Give a tensor memory of its own, which safetensors needs."""
    return tensor.clone(memory_format=torch.contiguous_format)
