"""What a connection tells its owner, in the order it happened."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Synced:
    """A connection begins. To an agent: every channel of an older one is dead."""

    nonce: bytes


@dataclass(frozen=True, slots=True)
class Hello:
    body: dict[str, Any]


@dataclass(frozen=True, slots=True)
class Ready:
    body: dict[str, Any]


@dataclass(frozen=True, slots=True)
class Pong:
    token: bytes


@dataclass(frozen=True, slots=True)
class Rested:
    """To a host: each end has all that the other has said, and says no more for now."""


@dataclass(frozen=True, slots=True)
class Opened:
    """The peer wants a channel; answer with accept or deny. Nobody checked *kind* or *params*."""

    channel: int
    kind: str
    params: dict[str, Any]


@dataclass(frozen=True, slots=True)
class Accepted:
    channel: int
    body: dict[str, Any]


@dataclass(frozen=True, slots=True)
class Denied:
    """The channel never was. *body* is all the peer said, with code and hint."""

    channel: int
    code: str
    hint: str
    body: dict[str, Any]


@dataclass(frozen=True, slots=True)
class Data:
    """Bytes; give ``size`` back with ``consumed`` once they are dealt with."""

    channel: int
    sub: int
    data: bytes

    @property
    def size(self) -> int:
        return len(self.data)


@dataclass(frozen=True, slots=True)
class Message:
    """An object; give ``size`` back with ``consumed`` once it is dealt with."""

    channel: int
    body: dict[str, Any]
    size: int


@dataclass(frozen=True, slots=True)
class Writable:
    """There is credit again after a ``send`` that did not take all."""

    channel: int


@dataclass(frozen=True, slots=True)
class Finished:
    """The peer sends no more on this channel; this side still may."""

    channel: int


@dataclass(frozen=True, slots=True)
class Reset:
    """The peer killed the channel; nothing more comes or goes."""

    channel: int
    code: str
    hint: str


@dataclass(frozen=True, slots=True)
class Closed:
    """Both sides have finished and all of ours is on its way."""

    channel: int


ChannelEvent = Opened | Accepted | Denied | Data | Message | Writable | Finished | Reset | Closed
Event = Synced | Hello | Ready | Pong | Rested | ChannelEvent
