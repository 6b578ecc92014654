"""How a file stores a model: the one description that every loader takes.

Formats, shards, prefixes, spellings of names, and scales beside the weights are dealt with here,
once. Loaders see the model's own names, and read tensors of a storage type that they know.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Literal, NamedTuple

from torch import Tensor

from .errors import GGUFError
from .namings import Part, Spelling, model_names, recognise
from .scales import ScaledTensor, group_scales
from .types import StoredTensor

Format = Literal["gguf", "safetensors"]


class Place(NamedTuple):
    """Where a tensor of the model lies: share `number` of `of` equal ones of a tensor's rows."""

    tensor: StoredTensor | ScaledTensor
    number: int
    of: int

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape in the file, torch order."""
        first, *others = self.tensor.shape or (1,)
        return (first // self.of, *others) if self.tensor.shape else ()

    @property
    def nbytes(self) -> int:
        """Bytes of what `read` gives."""
        return self.tensor.nbytes // self.of

    def read(self) -> Tensor:
        """Read the tensor, or its share of the rows, as it is stored."""
        data = self.tensor.read()
        if self.of == 1:
            return data
        rows = data.shape[0] // self.of
        return data.narrow(0, self.number * rows, rows).clone()


@dataclass(frozen=True, kw_only=True, slots=True)
class Variant:
    """How a file stores a model.

    Attributes:
        format: The file format.
        spelling: Whose names the file uses, and the prefix before them.
        places: Where each tensor of the model lies, by the model's names, in file order.
    """

    format: Format
    spelling: Spelling
    places: Mapping[str, Place]


def describe(
    tensors: Iterable[StoredTensor],
    metadata: Mapping[str, object],
    *,
    format: Format,
    part: Part | None,
    path: Path,
) -> Variant:
    """Describe the tensors of a file or of all shards of one.

    Args:
        tensors: The tensors, from checked headers.
        metadata: The metadata of the file, or of the first shard.
        format: The file format.
        part: What is wanted of a file with several models.
        path: The file, for errors.

    Raises:
        GGUFError: If a tensor is there twice, or scales do not fit their weights.
    """
    stored: dict[str, StoredTensor] = {}
    for tensor in tensors:
        if tensor.name in stored:
            raise GGUFError(
                f"tensor {tensor.name!r} is in two shards. Download the shards again.", path=path
            )
        stored[tensor.name] = tensor
    grouped = group_scales(stored, metadata)
    whole = {
        name: grouped.scaled.get(name, tensor)
        for name, tensor in stored.items()
        if name not in grouped.absorbed
    }
    spelling = recognise(whole, part=part, path=path)
    shares = model_names(whole, spelling, path=path)
    places = {
        name: Place(whole[share.stored], share.number, share.of) for name, share in shares.items()
    }
    for name, place in places.items():
        if place.of > 1 and (not place.tensor.shape or place.tensor.shape[0] % place.of):
            raise GGUFError(
                f"tensor {shares[name].stored!r} has the shape {list(place.tensor.shape)}, which "
                f"{place.of} tensors cannot share. Download the file again.",
                path=path,
            )
    return Variant(
        format=format,
        spelling=spelling,
        places=MappingProxyType(places),
    )
