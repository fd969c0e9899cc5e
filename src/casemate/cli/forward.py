"""``casemate forward``: a port of this machine's loopback that leads into a sandbox."""

from __future__ import annotations

import contextlib
import socket
import struct
import sys
import threading
from typing import TYPE_CHECKING, Annotated

import typer

from casemate.errors import CasemateError, InvalidSpec, RequestError

if TYPE_CHECKING:
    from casemate.sdk._sync.ports import Connection, Ports

AT_ONCE = 128
PIECE_BYTES = 65_536
_RESETS, _IS_SENT = struct.pack("ii", 1, 0), struct.pack("ii", 0, 0)  # SO_LINGER: what closing does


def forward(
    ref: Annotated[str, typer.Argument(metavar="SANDBOX", help="Its id, the beginning of it, or its name.")],
    ports: Annotated[str, typer.Argument(metavar="[LOCAL:]PORT", help="Ours and the sandbox's; 0: any free one.")],
) -> None:
    """Connect a port of this machine's loopback to a sandbox, until Ctrl-C.

    Programs of this machine reach it, other machines do not.

    Example:
      casemate forward work 8080:80
    """
    local, remote = ports_of(ports)
    from casemate.sdk import Client, Sandbox

    with Client() as client, _listening(local) as listener:
        sandbox = Sandbox.connect(ref, client=client)
        print(f"127.0.0.1:{listener.getsockname()[1]} -> {sandbox.id}:{remote}", flush=True)
        room = threading.Semaphore(AT_ONCE)
        while True:
            room.acquire()
            ours, _ = listener.accept()
            # daemon threads: Ctrl-C ends them with us, and the sandbox's programs see a reset
            threading.Thread(target=_serve, args=(ours, sandbox.ports, remote, room), daemon=True).start()


def ports_of(word: str) -> tuple[int, int]:
    """``LOCAL:PORT`` or ``PORT`` for both. Raises InvalidSpec."""
    local, colon, remote = word.rpartition(":")
    numbers = [local if colon else remote, remote]
    if not all(number.isascii() and number.isdecimal() and len(number) <= 5 for number in numbers):
        raise InvalidSpec(f"{word[:40]!r} is not [LOCAL:]PORT", hint="as 8080:80")
    ours, theirs = map(int, numbers)
    if ours > 65_535 or not 0 < theirs <= 65_535:
        raise InvalidSpec(f"{word[:40]!r}: a port is at most 65535, the sandbox's at least 1")
    return ours, theirs


def _listening(port: int) -> socket.socket:
    try:
        return socket.create_server(("127.0.0.1", port), backlog=AT_ONCE)
    except OSError as error:
        raise RequestError(f"127.0.0.1:{port}: {error.strerror}", hint="name another one, as 0:PORT") from error


def _serve(ours: socket.socket, ports: Ports, port: int, room: threading.Semaphore) -> None:
    ours.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESETS)  # whatever ends it before its end is no end
    ours.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    try:
        with ours, ports.connect(port) as there:
            up = threading.Thread(target=_take_in, args=(ours, there), daemon=True)
            up.start()
            while (piece := there.receive()) is not None:
                ours.sendall(piece)
            ours.shutdown(socket.SHUT_WR)
            up.join()
            ours.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _IS_SENT)
    except CasemateError as error:
        print(f"error: {error}", file=sys.stderr)
    except OSError:
        return  # the program on this side has left; the one on the other sees that by now
    finally:
        room.release()


def _take_in(ours: socket.socket, there: Connection) -> None:
    # what goes wrong is seen by who receives, and told there
    with contextlib.suppress(OSError, CasemateError):
        while piece := ours.recv(PIECE_BYTES):
            there.send(piece)
        there.end()
