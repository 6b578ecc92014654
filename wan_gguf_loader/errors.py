"""The exception that a bad weights file raises."""

from __future__ import annotations

from pathlib import Path


class GGUFError(ValueError):
    """A weights file (GGUF or safetensors) is damaged, cut short or of a kind that cannot be read.

    The message is one line, and starts with the file's name if the error is about a file.
    """

    def __init__(self, message: str, *, path: Path | None = None) -> None:
        line = " ".join(message.split())
        if path is not None:
            line = f"{path.name}: {line}"
        super().__init__(line.encode(errors="backslashreplace").decode())  # of lone surrogates
