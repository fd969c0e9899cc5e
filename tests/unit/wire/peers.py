"""Two ends of a wire with nothing between them but bytes."""

from __future__ import annotations

from collections.abc import Iterable

from casemate.wire import Connection, Event, Side

NONCE = bytes(range(16))


class Pair:
    def __init__(self) -> None:
        self.host, self.guest = Connection(Side.HOST, nonce=NONCE), Connection(Side.GUEST)
        self.host.synchronise()
        self.at_host: list[Event] = []
        self.at_guest: list[Event] = []
        self.run()

    def run(self) -> None:
        """Carry bytes until neither end has any."""
        while True:
            down, up = self.host.outgoing(), self.guest.outgoing()
            if not down and not up:
                return
            self.at_guest += self.guest.receive(down)
            self.at_host += self.host.receive(up)

    def open(self, kind: str = "exec") -> int:
        """A channel that both ends know."""
        number = self.host.open(kind, {})
        self.run()
        self.guest.accept(number)
        self.run()
        self.at_host.clear()
        self.at_guest.clear()
        return number


def drain(connection: Connection) -> bytes:
    return b"".join(iter(connection.outgoing, b""))


def chunks(data: bytes, sizes: Iterable[int]) -> list[bytes]:
    """*data* cut at *sizes*, over and over."""
    found, at, wanted = [], 0, list(sizes) or [len(data)]
    while at < len(data):
        for size in wanted:
            found.append(data[at : at + size])
            at += size
    return [piece for piece in found if piece]
