"""The report of `multitalk inspect` on a weights file."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from ..multitalk_core.errors import WeightsError
from ..multitalk_core.files.identify import FileKind, identify
from ..wan_gguf_loader.files import open_weights


@dataclass(frozen=True, kw_only=True, slots=True)
class Inspection:
    """One weights file.

    Attributes:
        file: Its path.
        format: `gguf` or `safetensors`.
        kind: What it is for, in one word: `base_i2v`, `adapter`, `lora` ...
        description: The same as a noun phrase.
        tensors: Number of tensors.
        types: Storage types and how many tensors have each, the most frequent first.
        parameters: Number of weights.
        bytes: Bytes of the tensors in the file.
    """

    file: str
    format: str
    kind: str
    description: str
    tensors: int
    types: dict[str, int]
    parameters: int
    bytes: int

    def lines(self) -> str:
        """Give the inspection as text."""
        types = ", ".join(f"{name} x {count}" for name, count in self.types.items())
        return (
            f"{Path(self.file).name}: {self.description}\n"
            f"  format      {self.format}\n"
            f"  tensors     {self.tensors:,}: {types}\n"
            f"  parameters  {self.parameters:,}\n"
            f"  bytes       {self.bytes:,}\n"
        )


def inspect_file(path: Path) -> Inspection:
    """Read a file's header and describe it.

    Raises:
        GGUFError: If it is no weights file, or a damaged one.
        WeightsError: If it is none of the kinds the method needs.
    """
    with open_weights(path) as file:
        identity = identify(file.shapes)
        if identity.kind in (FileKind.UNKNOWN, FileKind.OTHER):
            raise WeightsError(
                f"{path.name} is {identity.description}; no option takes it. The command needs "
                "a Wan2.1 image-to-video base, an adapter, Wav2Vec2, a VAE, UMT5 and CLIP vision."
            )
        infos = file.tensors.values()
        return Inspection(
            file=str(path),
            format=file.format,
            kind=identity.kind.name.lower(),
            description=identity.description,
            tensors=len(infos),
            types=dict(Counter(info.type for info in infos).most_common()),
            parameters=sum(info.num_elements for info in infos),
            bytes=sum(info.nbytes for info in infos),
        )
