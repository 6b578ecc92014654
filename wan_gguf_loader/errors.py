"""The one exception a weights file can cause."""

from __future__ import annotations

from pathlib import Path


class GGUFError(ValueError):
    """A weights file (GGUF or safetensors) is damaged, cut short or of a kind that cannot be read.

    Attributes:
        path: The file, where one is concerned; its name starts the message.
        tensor: Name of the tensor concerned.
        offset: Byte position in the file.
    """

    def __init__(
        self,
        message: str,
        *,
        path: Path | None = None,
        tensor: str | None = None,
        offset: int | None = None,
    ) -> None:
        """Build the one-line message and keep the parts."""
        line = " ".join(message.split())
        super().__init__(f"{path.name}: {line}" if path is not None else line)
        self.path = path
        self.tensor = tensor
        self.offset = offset
