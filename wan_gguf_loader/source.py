"""A file on disk that may be cut short or replaced at any moment.

Bytes are read, never mapped: a mapped file that shrinks kills the process (SIGBUS), a read only
returns fewer bytes. The file is open only during a read; its size, modification time and inode must
not change after the first look.
"""

from __future__ import annotations

import os
from io import FileIO
from pathlib import Path

import torch
from torch import Tensor

from .errors import GGUFError

_MAX_READ_BYTES = 1 << 28  # macOS refuses a single read of 2 GiB


class Source:
    """Reads byte ranges of one unchanging file; raises `GGUFError` if it has changed or ends.

    Attributes:
        path: The file.
        size: Its length in bytes.
    """

    def __init__(self, path: str | Path) -> None:
        """Look at the file.

        Raises:
            GGUFError: If there is no such file or it cannot be read.
        """
        self.path = Path(path)
        try:
            if self.path.is_dir():
                raise self.error("this is a folder. Choose a .gguf or .safetensors file.")
            with open(self.path, "rb", buffering=0) as file:
                self._stamp = _stamp(file)
        except (OSError, ValueError) as reason:
            if isinstance(reason, GGUFError):
                raise
            raise self.error(f"the file cannot be opened ({_reason(reason)}).") from reason
        self.size = self._stamp[0]

    def error(self, message: str) -> GGUFError:
        """Build an error that names this file."""
        return GGUFError(message, path=self.path)

    def require_inside(self, end: int, *, what: str) -> None:
        """Refuse a file that ends before byte `end`, up to which `what` reaches.

        Raises:
            GGUFError: If it does.
        """
        if end > self.size:
            raise self.error(
                f"truncated download: {what} needs the file to have {end} bytes, it has "
                f"{self.size}. Download the file again."
            )

    def read(self, offset: int, nbytes: int) -> bytes:
        """Return `nbytes` bytes from `offset`; both must lie inside the file."""
        buffer = bytearray(nbytes)
        self._read_into(memoryview(buffer), offset)
        return bytes(buffer)

    def read_tensor(self, offset: int, nbytes: int) -> Tensor:
        """Return `nbytes` bytes from `offset` as a new uint8 tensor that owns its memory."""
        data = torch.empty(nbytes, dtype=torch.uint8)
        if nbytes:
            self._read_into(memoryview(data.numpy().data), offset)
        return data

    def _read_into(self, view: memoryview, offset: int) -> None:
        done = 0
        try:
            with open(self.path, "rb", buffering=0) as file:
                if _stamp(file) != self._stamp:
                    raise self.error(
                        "the file was changed or replaced after it was opened. Load it again.",
                    )
                file.seek(offset)
                while done < len(view):
                    count = file.readinto(view[done : done + _MAX_READ_BYTES])
                    if not count:
                        break
                    done += count
        except OSError as reason:
            raise self.error(
                f"the file could be opened before but cannot be read now ({_reason(reason)}).",
            ) from reason
        if done < len(view):
            raise self.error(
                f"the file ends at byte {offset + done} but {offset + len(view)} are needed: it "
                "was truncated while being read. Load it again.",
            )


def _stamp(file: FileIO) -> tuple[int, int, int, int]:
    """Give what changes when a file is replaced or written: size, time, inode, device."""
    stat = os.fstat(file.fileno())
    return stat.st_size, stat.st_mtime_ns, stat.st_ino, stat.st_dev


def _reason(error: Exception) -> str:
    if isinstance(error, FileNotFoundError):
        return "no such file"
    return getattr(error, "strerror", None) or str(error)
