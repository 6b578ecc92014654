"""A variant of the zoo: how it is written, and what must come of it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple, get_args

from torch import Tensor

Family = Literal[
    "base", "adapter", "merged", "text_encoder", "clip_vision", "wav2vec2", "vae", "lora",
    "lookalike",
]  # fmt: skip


FAMILIES: tuple[Family, ...] = get_args(Family)


class Loads(NamedTuple):
    """The file must load.

    Attributes:
        values: What each tensor of the model must be, float32, by the model's names; decoded from
            the written bytes without the loader.
        tolerance: Largest relative error of a tensor; above 0 only where the product calculates.
    """

    values: Mapping[str, Tensor]
    tolerance: float = 0.0


class Refused(NamedTuple):
    """The file must be refused.

    Attributes:
        words: A pattern in the message: what the file is, or what is wrong with it.
    """

    words: str


class Written(NamedTuple):
    """A variant on disk.

    Attributes:
        path: What a person chooses: a file, an index or a folder.
        outcome: What must come of it.
    """

    path: Path
    outcome: Loads | Refused


@dataclass(frozen=True)
class Variant:
    """One way to hold one model.

    Attributes:
        family: The model.
        name: The way, for people; unique in its family.
        write: Writes the files into an empty folder.
    """

    family: Family
    name: str
    write: Callable[[Path], Written]

    @property
    def title(self) -> str:
        """Name the variant among all."""
        return f"{self.family}: {self.name}"

    @property
    def slug(self) -> str:
        """Name the variant among all, in characters that every file system takes."""
        return "".join(c if c.isalnum() or c in "._-" else "_" for c in self.title)
