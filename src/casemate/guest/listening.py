"""Which TCP ports of this guest are listened on, as its kernel says.

Source: Documentation/networking/proc_net_tcp.rst: addresses are 32-bit words in the host's byte order.
"""

from __future__ import annotations

import socket
from typing import Any

MOST = 500
_LISTENS = "0A"


def listening(proc: str = "/proc/net") -> list[dict[str, Any]]:
    """By port; at most MOST."""
    found = {(port, address): uid for name in ("tcp", "tcp6") for port, address, uid in _rows(f"{proc}/{name}")}
    return [{"port": port, "address": address, "uid": uid} for (port, address), uid in sorted(found.items())[:MOST]]


def _rows(path: str) -> list[tuple[int, str, int]]:
    try:
        with open(path) as file:
            lines = file.read().splitlines()[1:]
    except FileNotFoundError:  # a kernel without IPv6
        return []
    rows = []
    for line in lines:
        fields = line.split()
        if len(fields) > 7 and fields[3] == _LISTENS:
            address, _, port = fields[1].partition(":")
            rows.append((int(port, 16), _address(address), int(fields[7])))
    return rows


def _address(text: str) -> str:
    words = bytes.fromhex(text)
    swapped = b"".join(words[at : at + 4][::-1] for at in range(0, len(words), 4))
    return socket.inet_ntop(socket.AF_INET if len(swapped) == 4 else socket.AF_INET6, swapped)
