"""TCP into a guest: connections to ports of its loopback, made by its agent, and which ports listen."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import asdict, dataclass
from typing import Any

from casemate import wire
from casemate.errors import InvalidSpec, ProtocolViolation
from casemate.sandbox import parse
from casemate.sandbox.channel import Channel
from casemate.sandbox.link import Link

CONNECT_TIMEOUT_S = 15.0  # the agent gives up after 5 s


@dataclass(frozen=True, slots=True)
class Listening:
    """A port that a program of *uid* listens on; only one on a loopback or any address can be reached."""

    port: int
    address: str
    uid: int

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


class Connection:
    """One connection; a task may read it while another writes. Each direction ends by itself."""

    def __init__(self, channel: Channel) -> None:
        self._channel = channel

    async def read(self) -> bytes | None:
        """The next piece, None when the program has said all. Raises PortRefused when it reset the connection."""
        item = await self._channel.receive()
        match item:
            case wire.Data(sub=1):
                return item.data
            case None:
                return None
            case _:
                raise ProtocolViolation("tcp-in: a message nobody sends")

    async def write(self, data: bytes | memoryview) -> None:
        """Waits while the program does not read. Raises StateConflict when it has left."""
        await self._channel.send(data)

    def finish(self) -> None:
        """No more comes from this side; the program may still speak."""
        self._channel.finish()


@asynccontextmanager
async def connect(link: Link, port: int) -> AsyncIterator[Connection]:
    """Leaving the block before both directions have ended resets the connection.

    Raises PortRefused with the guest kernel's errno, InvalidSpec.
    """
    if not 0 < port < 65_536:
        raise InvalidSpec(f"port is {port}; it must be from 1 to 65535")
    async with link.open("tcp-in", {"port": port}, timeout_s=CONNECT_TIMEOUT_S) as channel:
        yield Connection(channel)


async def listed(link: Link) -> list[Listening]:
    """As the guest's kernel says, by way of its agent."""
    async with link.open("tcp-in", {"op": "list"}) as channel:
        channel.finish()
        return [_listening(body) for body in parse.objects(channel.accepted, "ports")]


def _listening(body: Any) -> Listening:
    return Listening(
        parse.whole(body, "port", 1, 65_535), parse.text(body, "address", 64), parse.whole(body, "uid", high=2**32)
    )
