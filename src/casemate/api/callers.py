"""Whether who waits for a cell is still there, beyond what the connection tells by itself.

    stopped (SIGSTOP), on the unix socket    the kernel's word on its process, each LOOK_S
    stopped, or cut off, over TCP            it promised to say that it lives (``caller_timeout_s``), and does not
    cut off, over TCP                        the kernel's word on the connection: nothing of ours is acknowledged

A reset and an end of the connection are seen by the server, as for every response.
"""

from __future__ import annotations

import os
import socket
import struct
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import anyio
import anyio.to_thread
from starlette.requests import HTTPConnection

from casemate.api.connections import Address, Peer
from casemate.api.principal import principal

LOOK_S = 0.25
STOPPED_LOOKS = 4  # in a row: some are stopped for a moment, as by a debugger or Ctrl-Z and bg
ACKNOWLEDGE_S = 1.5  # of a peer that is asked each second, or to whom something is under way
# The kernel asks a silent peer after so long, and as often, while a cell runs for it
ASKED = (
    (socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1),
    (socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 1),
    (socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, 1),
)
_TCP_INFO = struct.Struct("=8B24I")  # linux/tcp.h, tcp_info: as far as it has been since Linux 2.6
_RETRANSMITS, _PROBES, _LAST_ACK_MS = 2, 3, 8 + 12


@dataclass(eq=False)
class Caller:
    """Who waits for one cell."""

    peer: Peer | Address | None
    socket: Any
    timeout_s: float | None
    heard_at: float

    @classmethod
    def of(cls, connection: HTTPConnection, timeout_s: float | None) -> Caller:
        state = connection.scope.get("state", {})
        return cls(state.get("peer"), state.get("socket"), timeout_s, time.monotonic())

    def hear(self) -> None:
        self.heard_at = time.monotonic()

    async def until_gone(self) -> None:
        """Wait until nobody waits any more."""
        with self._asked() as connection:
            stopped = 0
            while stopped < STOPPED_LOOKS:
                await anyio.sleep(LOOK_S)
                if self.timeout_s is not None and time.monotonic() - self.heard_at > self.timeout_s:
                    return
                if connection is not None and is_cut_off(connection):
                    return
                stands = isinstance(self.peer, Peer) and await anyio.to_thread.run_sync(is_stopped, self.peer.pid)
                stopped = stopped + 1 if stands else 0

    @contextmanager
    def _asked(self) -> Iterator[socket.socket | None]:
        """The connection, of which the kernel finds out quickly whether it is one; None for a unix socket."""
        if self.socket is None or not isinstance(self.peer, Address):
            yield None
            return
        with socket.socket(fileno=os.dup(self.socket.fileno())) as ours:
            before = [(level, name, ours.getsockopt(level, name)) for level, name, _ in ASKED]
            for option in ASKED:
                ours.setsockopt(*option)
            try:
                yield ours
            finally:
                for option in before:
                    ours.setsockopt(*option)


class Callers:
    """Those who promised to say that they live, by tenant and cell."""

    def __init__(self) -> None:
        self._known: dict[tuple[str, str], Caller] = {}

    @contextmanager
    def expected(self, connection: HTTPConnection, cell_id: str, caller: Caller) -> Iterator[None]:
        """While the block runs its word counts."""
        key = principal(connection).tenant, cell_id
        self._known[key] = caller
        try:
            yield
        finally:
            self._known.pop(key, None)

    def heard_of(self, connection: HTTPConnection, cell_id: str) -> None:
        """Nothing happens where nobody waits for its word: the cell may have ended just now."""
        caller = self._known.get((principal(connection).tenant, cell_id))
        if caller is not None:
            caller.hear()


def is_stopped(pid: int) -> bool:
    """Whether a process stands still by a signal; one that is not there does not: another may have its connection."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            return file.read().rpartition(b")")[2].split()[0] == b"T"
    except (FileNotFoundError, ProcessLookupError):
        return False


def is_cut_off(connection: socket.socket) -> bool:
    """Whether a peer that should have acknowledged something has not. One that reads slowly does acknowledge."""
    info = connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _TCP_INFO.size)
    fields = _TCP_INFO.unpack(info.ljust(_TCP_INFO.size, b"\0"))
    asked = fields[_RETRANSMITS] > 1 or fields[_PROBES] > 0
    return bool(asked and fields[_LAST_ACK_MS] > ACKNOWLEDGE_S * 1000)
