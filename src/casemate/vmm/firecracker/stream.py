"""The one stream to the agent, over Firecracker's vsock: a unix socket, and on it a line that names the guest's port.

    host: connect ── CONNECT 1024\n ──>          guest: listens on port 1024
                  <── OK <host's port>\n ──      its bytes follow
                  <── end of file ──             nobody listens there, or not yet

Until the guest's driver is there nobody takes the line, and no answer comes. Source: Firecracker's docs/vsock.md
"""

from __future__ import annotations

import asyncio
import errno
import re
import socket

import anyio

from casemate.errors import VmmRefused
from casemate.vmm.firecracker.exchange import connect_in

ANSWER = re.compile(rb"OK \d{1,10}\n")
LONGEST_ANSWER = 14  # bytes, its end of line with it
FIRST_WAIT_S, LONGEST_WAIT_S = 0.002, 0.1  # between two attempts
PIECE_BYTES = 65_536


class NobodyThere(VmmRefused):
    """Nobody in the guest takes a connection."""


async def connect(folder: int, name: str, port: int, timeout_s: float) -> socket.socket:
    """A connection to *port* in the guest whose VMM has its socket at *name* in the open folder; does not block.

    Nothing of what the guest sends after the answer has been read. Raises NobodyThere when the guest refuses, or there
    is no such socket; VmmRefused for what is no socket or no answer, and when none comes in time.
    """
    made = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
    try:
        with anyio.fail_after(timeout_s):
            connect_in(folder, name, made)  # at once, or not: its queue is full
            made.sendall(b"CONNECT %d\n" % port)
            await _take_answer(made, port)
    except BaseException as error:
        made.close()
        if isinstance(error, TimeoutError):
            raise VmmRefused(f"a connection to port {port} of the guest was not answered in {timeout_s:g} s") from error
        if isinstance(error, OSError):
            raise NobodyThere(f"port {port} of the guest cannot be reached: {error.strerror}") from error
        raise
    return made


async def connect_soon(folder: int, name: str, port: int, timeout_s: float) -> socket.socket:
    """As ``connect``, again and again as long as nobody is there. Raises VmmRefused when the time is up."""
    pause_s = FIRST_WAIT_S
    deadline = anyio.current_time() + timeout_s
    while True:
        left_s = deadline - anyio.current_time()
        try:
            return await connect(folder, name, port, max(left_s, 0.001))
        except NobodyThere:
            if left_s <= pause_s:
                raise
        await anyio.sleep(pause_s)
        pause_s = min(2 * pause_s, LONGEST_WAIT_S)


async def _take_answer(made: socket.socket, port: int) -> None:
    """Byte by byte, for what comes after it is for others: an answer is a dozen of them."""
    loop, answer = asyncio.get_running_loop(), b""
    while not answer.endswith(b"\n"):
        piece = await loop.sock_recv(made, 1)
        if not piece:
            raise NobodyThere(f"port {port} of the guest: nobody takes a connection")
        answer += piece
        if len(answer) > LONGEST_ANSWER:
            break
    if not ANSWER.fullmatch(answer):
        raise VmmRefused(f"a connection to port {port} of the guest was answered with {answer!r}")


async def relay(theirs: socket.socket, folder: int, name: str, port: int, timeout_s: float) -> None:
    """Carry bytes between *theirs* and the guest, once it takes a connection, until either ends; closes *theirs*.

    For a guest that boots: it has no driver yet when its stream is asked for. Takes a copy of each byte; a stream that
    is made anew, as after every restore, goes without.
    """
    with theirs:
        try:
            guest = await connect_soon(folder, name, port, timeout_s)
        except VmmRefused:
            return  # whoever has the other end sees it closed, and asks anew or gives up
        with guest:
            try:
                async with anyio.create_task_group() as tasks:
                    tasks.start_soon(_carry, theirs, guest, tasks.cancel_scope)
                    tasks.start_soon(_carry, guest, theirs, tasks.cancel_scope)
            finally:
                anyio.notify_closing(guest)


async def _carry(source: socket.socket, target: socket.socket, until: anyio.CancelScope) -> None:
    loop = asyncio.get_running_loop()
    try:
        while piece := await loop.sock_recv(source, PIECE_BYTES):
            await loop.sock_sendall(target, piece)
    except OSError as error:
        if error.errno not in (errno.EPIPE, errno.ECONNRESET, errno.EBADF):
            raise
    finally:
        until.cancel()
