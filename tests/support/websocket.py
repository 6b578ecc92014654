"""A reader of ComfyUI's websocket: the handshake and unfragmented frames, nothing more."""

from __future__ import annotations

import base64
import json
import os
import socket
import struct
from collections.abc import Iterator
from typing import Any
from urllib.parse import urlsplit

TEXT, BINARY, PING = 1, 2, 9


class Listener:
    """An open websocket of one client id."""

    def __init__(self, url: str, *, client: str) -> None:
        place = urlsplit(url)
        self._socket = socket.create_connection((place.hostname, place.port or 80), timeout=120)
        key = base64.b64encode(os.urandom(16)).decode()
        self._socket.sendall(
            f"GET /ws?clientId={client} HTTP/1.1\r\nHost: {place.netloc}\r\nUpgrade: websocket\r\n"
            f"Connection: Upgrade\r\nSec-WebSocket-Key: {key}\r\nSec-WebSocket-Version: 13\r\n"
            "\r\n".encode()
        )
        self._stream = self._socket.makefile("rb")
        status = self._stream.readline()
        assert b" 101 " in status, status
        while self._stream.readline().strip():
            pass

    def messages(self) -> Iterator[dict[str, Any]]:
        """Give messages as they come; a binary one as its event number under `binary`."""
        while True:
            kind, payload = self._frame()
            if kind == TEXT:
                yield json.loads(payload)
            elif kind == BINARY:
                yield {"type": "binary", "binary": struct.unpack(">I", payload[:4])[0]}

    def close(self) -> None:
        """Hang up."""
        self._stream.close()
        self._socket.close()

    def _frame(self) -> tuple[int, bytes]:
        first, second = self._stream.read(2)
        length = second & 0x7F
        if length == 126:
            length = struct.unpack(">H", self._stream.read(2))[0]
        elif length == 127:
            length = struct.unpack(">Q", self._stream.read(8))[0]
        return first & 0x0F, self._stream.read(length)
