"""What a connection tells its owner, in the order it happened."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Synced:
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
class Opened:
    channel: int
    kind: str
    params: dict[str, Any]


@dataclass(frozen=True, slots=True)
class Accepted:
    channel: int
    body: dict[str, Any]


@dataclass(frozen=True, slots=True)
class Denied:
    channel: int
    code: str
    hint: str
    body: dict[str, Any]


@dataclass(frozen=True, slots=True)
class Data:
    channel: int
    sub: int
    data: bytes


@dataclass(frozen=True, slots=True)
class Message:
    channel: int
    body: dict[str, Any]


@dataclass(frozen=True, slots=True)
class Writable:
    channel: int


@dataclass(frozen=True, slots=True)
class Finished:
    channel: int


@dataclass(frozen=True, slots=True)
class Reset:
    channel: int
    code: str
    hint: str


@dataclass(frozen=True, slots=True)
class Closed:
    channel: int


ChannelEvent = Opened | Accepted | Denied | Data | Message | Writable | Finished | Reset | Closed
Event = Synced | Hello | Ready | Pong | ChannelEvent
