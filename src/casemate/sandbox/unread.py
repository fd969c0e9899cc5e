"""How many bytes wait in a stream, each way; nothing in one that is closed."""

from __future__ import annotations

import fcntl
import socket
import struct
import termios


def unread_by_peer(stream: socket.socket) -> int:
    """Bytes we sent over a unix socket that its other end has not read. Source: Linux unix_outq_len, SIOCOUTQ"""
    return _count(stream, termios.TIOCOUTQ)


def unread_by_us(stream: socket.socket) -> int:
    return _count(stream, termios.FIONREAD)


def _count(stream: socket.socket, request: int) -> int:
    if stream.fileno() < 0:  # its machine is gone
        return 0
    return int(struct.unpack("i", fcntl.ioctl(stream, request, bytes(4)))[0])
