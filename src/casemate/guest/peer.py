"""A bounded, distrustful socket to a process that runs the image's or the user's code.

SOCK_SEQPACKET, one JSON object per packet. What the peer sends is limited in size and depth and may be
anything; who it is comes from the kernel (SCM_CREDENTIALS). Never blocks.
"""

from __future__ import annotations

import array
import json
import os
import socket
import struct
from collections.abc import Sequence
from typing import Any

MESSAGE_LIMIT = 192 * 1024
_UCRED = struct.Struct("3i")
_SPACE = socket.CMSG_SPACE(_UCRED.size)
_SPACE_FOR_FILE = _SPACE + socket.CMSG_SPACE(struct.calcsize("i"))
_ENCODE = json.JSONEncoder(separators=(",", ":")).encode
_DECODE = json.JSONDecoder().decode
_buffer = bytearray(MESSAGE_LIMIT)  # one loop, no threads: a message is out of it before the next comes in


class PeerGone(Exception):
    """The peer closed its end."""


class PeerLied(Exception):
    """The peer sent what no program of ours sends."""


class Peer:
    """Our end of a pair; `theirs` is handed over or inherited, and closed here after that."""

    def __init__(self) -> None:
        self._sock, self.theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._sock.setblocking(False)
        self._sock.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
        self._sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 2 * MESSAGE_LIMIT)

    def fileno(self) -> int:
        return self._sock.fileno()

    def close(self) -> None:
        self._sock.close()
        self.theirs.close()

    def send(self, message: dict[str, Any], fds: Sequence[int] = ()) -> bool:
        """Send one message. False: it is too big, or the peer is gone or does not read."""
        packet = _ENCODE(message).encode("ascii")
        if len(packet) > MESSAGE_LIMIT:
            return False
        rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds).tobytes())] if fds else []
        try:
            self._sock.sendmsg([packet], rights)
        except OSError:
            return False
        return True

    def receive(self, files: list[int] | None = None) -> tuple[dict[str, Any], int] | None:
        """The next message and its sender's pid; None when there is none now.

        A descriptor that comes along is appended to *files*, if given, and the caller's; all others are closed.
        Raises: PeerGone, PeerLied.
        """
        space = _SPACE if files is None else _SPACE_FOR_FILE
        try:
            length, ancillary, flags, _ = self._sock.recvmsg_into([_buffer], space, socket.MSG_CMSG_CLOEXEC)
        except BlockingIOError:
            return None
        except OSError as error:
            raise PeerGone from error
        pid = 0
        for level, kind, payload in ancillary:
            if (level, kind) == (socket.SOL_SOCKET, socket.SCM_CREDENTIALS) and len(payload) == _UCRED.size:
                pid = _UCRED.unpack(payload)[0]
            elif (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
                _take_files(payload, files)
        if not length:
            raise PeerGone
        if flags & socket.MSG_TRUNC:
            raise PeerLied("a message beyond the limit")
        return _parse(_buffer[:length]), pid


def _parse(packet: bytearray) -> dict[str, Any]:
    try:
        message = _DECODE(str(packet, "utf-8"))
    except (ValueError, RecursionError) as error:
        raise PeerLied("no JSON") from error
    if not isinstance(message, dict):
        raise PeerLied("no JSON object")
    return message


def _take_files(payload: bytes, files: list[int] | None) -> None:
    fds = array.array("i")
    fds.frombytes(payload[: len(payload) - len(payload) % fds.itemsize])
    for fd in fds:
        if files is None or files:
            os.close(fd)
        else:
            files.append(fd)
