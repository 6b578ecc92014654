"""A small Hugging Face hub on this machine, honest or not.

As on the hub, a file's address answers with its size and sum and a redirect to another host, where
the bytes are; there ranges are served.
"""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

COMMIT = "c0ffee" + "0" * 34


@dataclass
class ModelHub:
    """What the server has, does and has been asked.

    Attributes:
        files: Contents by `repository/path`.
        stated_sums: Sums it states in place of the true ones.
        stated_sizes: Sizes it states in place of the true ones.
        stops: For each coming request of bytes, after how many it closes the connection; -1 answers
            that the server is down. Then it is well again.
        ranges: Whether it serves ranges.
        asked: Method and path of every request, and its range for one of bytes.
        authorized: Hosts that were sent a token.
    """

    files: dict[str, bytes] = field(default_factory=dict)
    stated_sums: dict[str, str] = field(default_factory=dict)
    stated_sizes: dict[str, int] = field(default_factory=dict)
    stops: list[int] = field(default_factory=list)
    ranges: bool = True
    asked: list[tuple[str, str, str | None]] = field(default_factory=list)
    authorized: set[str] = field(default_factory=set)
    endpoint: str = ""

    @property
    def fetched(self) -> list[tuple[str, str | None]]:
        """Name and range of every request of bytes."""
        return [
            (path.rpartition("/")[2], part)
            for method, path, part in self.asked
            if method == "GET" and path.startswith("/bytes/")
        ]


@contextmanager
def serve(hub: ModelHub) -> Iterator[None]:
    """Serve the hub for a `with` block."""

    class Handler(_Handler):
        state = hub

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        hub.endpoint = f"http://127.0.0.1:{server.server_port}"
        thread = threading.Thread(target=server.serve_forever, args=(0.02,))
        thread.start()
        try:
            yield
        finally:
            server.shutdown()
            thread.join()


class _Handler(BaseHTTPRequestHandler):
    state: ModelHub

    def do_HEAD(self) -> None:
        self._answer()

    def do_GET(self) -> None:
        self._answer()

    def log_message(self, format: str, *arguments: object) -> None:
        """Keep quiet."""

    def _answer(self) -> None:
        hub = self.state
        hub.asked.append((self.command, self.path, self.headers["Range"]))
        if self.headers["Authorization"]:
            hub.authorized.add(self.headers["Host"].partition(":")[0])
        if self.path.startswith("/bytes/"):
            self._send_bytes(hub.files[self.path.removeprefix("/bytes/")])
            return
        repository, _, rest = self.path[1:].partition("/resolve/")
        name = f"{repository}/{rest.partition('/')[2]}"
        if name not in hub.files:
            self.send_response(404)
            self.send_header("X-Error-Code", "EntryNotFound")
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        content = hub.files[name]
        total = hub.stated_sums.get(name, hashlib.sha256(content).hexdigest())
        self.send_response(302)
        self.send_header("X-Repo-Commit", COMMIT)
        self.send_header("X-Linked-Etag", f'"{total}"')
        self.send_header("X-Linked-Size", str(hub.stated_sizes.get(name, len(content))))
        port = self.server.server_address[1]
        self.send_header("Location", f"http://localhost:{port}/bytes/{name}")
        self.send_header("Content-Length", "0")
        self.end_headers()

    def _send_bytes(self, content: bytes) -> None:
        hub = self.state
        stop = hub.stops.pop(0) if hub.stops else len(content)
        start = int(self.headers["Range"][len("bytes=") : -1]) if self._wants_part() else 0
        if stop < 0 or start > len(content) - 1:
            self.send_response(503 if stop < 0 else 416)
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        self.send_response(206 if self._wants_part() else 200)
        if self._wants_part():
            self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
        self.send_header("Content-Length", str(len(content) - start))
        self.end_headers()
        with suppress(ConnectionError):  # the other side has no room for it
            self.wfile.write(content[start:][:stop])
        self.close_connection = True

    def _wants_part(self) -> bool:
        return self.state.ranges and self.headers["Range"] is not None
