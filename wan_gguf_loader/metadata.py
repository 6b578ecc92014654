"""The metadata of a GGUF file, and a cursor that checks every length before it reads."""

from __future__ import annotations

import struct
from collections.abc import Iterator, Mapping
from typing import NamedTuple

from .errors import GGUFError
from .source import Source

STRING, ARRAY, BOOL = 8, 9, 7
SCALARS = dict(zip((0, 1, 2, 3, 4, 5, 6, 7, 10, 11, 12), "BbHhIifBQqd", strict=True))
"""struct codes of the number types of the metadata, by their id."""

MAX_STRING = 16 << 20
_MAX_ARRAY_BYTES = 16 << 20  # of an array that is read: each value becomes an object
_MAX_ARRAY = 1 << 20
_MAX_HEADER = 64 << 20  # bytes looked at, skipped arrays of numbers not counted
_WINDOW = 1 << 18


class StoredArray(NamedTuple):
    """Position of an array of the metadata; its values are read on access."""

    element: int
    length: int
    offset: int
    nbytes: int


class Cursor:
    """Reads a file front to back through a window, never past `end`."""

    def __init__(self, source: Source, *, offset: int, end: int) -> None:
        self.source = source
        self.pos = offset
        self.end = end
        self._window = b""
        self._start = offset
        self._budget = _MAX_HEADER

    def error(self, message: str) -> GGUFError:
        """Build an error that names the file."""
        return self.source.error(message)

    def need(self, nbytes: int, what: str) -> None:
        """Check that `nbytes` more bytes exist."""
        if nbytes > self.end - self.pos:
            raise self.error(
                f"the header is cut short or damaged: {what} at byte {self.pos} needs {nbytes} "
                f"bytes, {self.end - self.pos} are left. Download the file again."
            )

    def take(self, nbytes: int, what: str) -> bytes:
        """Read the next `nbytes` bytes."""
        self.need(nbytes, what)
        begin = self.pos - self._start
        if begin < 0 or begin + nbytes > len(self._window):
            self._fill(nbytes)
            begin = 0
        self.pos += nbytes
        return self._window[begin : begin + nbytes]

    def _fill(self, nbytes: int) -> None:
        size = min(max(nbytes, _WINDOW), self.end - self.pos)
        self._budget -= size
        if self._budget < 0:
            raise self.error(
                f"the header is longer than {_MAX_HEADER >> 20} MiB: no model has that. "
                "Download the file again."
            )
        self._window = self.source.read(self.pos, size)
        self._start = self.pos

    def skip(self, nbytes: int, what: str) -> None:
        """Step over `nbytes` bytes without reading them."""
        self.need(nbytes, what)
        self.pos += nbytes

    def scalar(self, code: str, what: str) -> int | float:
        """Read a number of a struct code."""
        size = struct.calcsize("<" + code)
        value: int | float = struct.unpack("<" + code, self.take(size, what))[0]
        return value

    def integer(self, code: str, what: str) -> int:
        """Read a whole number of a struct code."""
        return int(self.scalar(code, what))

    def string(self, what: str, *, limit: int) -> str:
        """Read a string of at most `limit` bytes."""
        length = self.integer("Q", f"the length of {what}")
        if length > limit:
            raise self.error(
                f"{what} at byte {self.pos} claims {length} bytes, at most {limit} are allowed: "
                "the header is damaged. Download the file again."
            )
        start = self.pos
        data = self.take(length, what)
        try:
            return data.decode("utf-8")
        except UnicodeDecodeError as reason:
            raise self.error(
                f"{what} is not valid UTF-8 at byte {start + reason.start}: the header is damaged."
            ) from reason

    def name(self, what: str, *, limit: int) -> str:
        """Read a string that must not be empty."""
        text = self.string(what, limit=limit)
        if not text or "\0" in text:
            raise self.error(f"{what} is {text!r}: names must not be empty or hold NUL characters.")
        return text

    def skip_strings(self, count: int, what: str) -> None:
        """Step over `count` strings."""
        for _ in range(count):
            length = int.from_bytes(self.take(8, what), "little")
            if length > self.end - self.pos:
                self.need(length, what)
            self.pos += length


class Metadata(Mapping[str, object]):
    """The key-value part of a GGUF header; arrays become tuples when asked for."""

    def __init__(self, source: Source, values: dict[str, object]) -> None:
        """Wrap parsed values; arrays are positions in `source`."""
        self._source = source
        self._values = values

    def __len__(self) -> int:
        """Return the number of keys."""
        return len(self._values)

    def __iter__(self) -> Iterator[str]:
        """Iterate over the keys in file order."""
        return iter(self._values)

    def __contains__(self, key: object) -> bool:
        """Tell whether a key exists, without reading its value."""
        return key in self._values

    def __getitem__(self, key: str) -> object:
        """Return a value, reading it from the file if it is an array.

        Raises:
            GGUFError: If the file has changed, or the array is damaged or larger than 16 MiB.
        """
        value = self._values[key]
        return self._read(key, value) if isinstance(value, StoredArray) else value

    def _read(self, key: str, array: StoredArray) -> tuple[object, ...]:
        what = f"the array {key!r}"
        if array.nbytes > _MAX_ARRAY_BYTES or array.length > _MAX_ARRAY:
            raise self._source.error(
                f"{what} has {array.nbytes} bytes, more than {_MAX_ARRAY_BYTES}, or more than "
                f"{_MAX_ARRAY} values: it is not read."
            )
        if array.element != STRING:
            code = f"<{array.length}{SCALARS[array.element]}"
            numbers = struct.unpack(code, self._source.read(array.offset, array.nbytes))
            return tuple(map(bool, numbers)) if array.element == BOOL else numbers
        end = array.offset + array.nbytes
        cursor = Cursor(self._source, offset=array.offset, end=end)
        return tuple(
            cursor.string(f"a string of {what}", limit=MAX_STRING) for _ in range(array.length)
        )
