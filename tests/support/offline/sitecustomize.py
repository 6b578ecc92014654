"""Loaded by a server's Python at its start: no network but this machine, and no Triton.

Attempts to reach further are noted in the file that `NETWORK_LOG` names.
"""

from __future__ import annotations

import ipaddress
import os
import sys

_LOG = os.environ["NETWORK_LOG"]


def _refuse_network(event: str, arguments: tuple[object, ...]) -> None:
    if event in ("socket.connect", "socket.sendto"):
        address = arguments[1]
        host = address[0] if isinstance(address, tuple) else None  # else a local socket's path
    elif event == "socket.getaddrinfo":
        host = arguments[0]
    else:
        return
    if host is None or _is_here(host):
        return
    with open(_LOG, "a", encoding="utf-8") as log:
        log.write(f"{event} {host!r}\n")
    raise OSError(f"no network: {event} {host!r}")


def _is_here(host: object) -> bool:
    name = host.decode() if isinstance(host, bytes) else str(host)
    if name in ("", "localhost"):
        return True
    try:
        address = ipaddress.ip_address(name)
    except ValueError:
        return False
    return address.is_loopback or address.is_unspecified


sys.addaudithook(_refuse_network)
sys.modules["triton"] = None  # type: ignore[assignment]  # importing it fails, as on Windows
