"""Bytes on the one stream: frames, channels, credit. Sans I/O; runs on the host and in the guest."""

from casemate.wire.bodies import MAX_JSON
from casemate.wire.connection import MAX_CHANNELS, WINDOW, Connection, Side
from casemate.wire.events import (
    Accepted,
    ChannelEvent,
    Closed,
    Data,
    Denied,
    Event,
    Finished,
    Hello,
    Message,
    Opened,
    Pong,
    Ready,
    Reset,
    Rested,
    Synced,
    Writable,
)
from casemate.wire.frames import GENERATION, MAX_PAYLOAD, NONCE_BYTES

__all__ = [
    "GENERATION",
    "MAX_CHANNELS",
    "MAX_JSON",
    "MAX_PAYLOAD",
    "NONCE_BYTES",
    "WINDOW",
    "Accepted",
    "ChannelEvent",
    "Closed",
    "Connection",
    "Data",
    "Denied",
    "Event",
    "Finished",
    "Hello",
    "Message",
    "Opened",
    "Pong",
    "Ready",
    "Reset",
    "Rested",
    "Side",
    "Synced",
    "Writable",
]
