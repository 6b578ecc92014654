"""The exception that a bad weights file raises."""

from __future__ import annotations

from pathlib import Path


class GGUFError(ValueError):
    """A weights file (GGUF or safetensors) is damaged, cut short or of a kind that cannot be read.

    Attributes:
        path: The file, if the error is about one; its name starts the message.
        tensor: Name of the tensor that the error is about.
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
