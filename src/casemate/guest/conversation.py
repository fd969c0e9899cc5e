"""One channel as its owner in the agent sees it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from casemate import wire
from casemate.errors import CasemateError, InvalidSpec

if TYPE_CHECKING:
    from casemate.guest.server import Server


class Conversation:
    """Base of the channel kinds. The server calls on_*; a CasemateError from *begin* becomes a denial."""

    def __init__(self, server: Server, number: int) -> None:
        self.server, self.number = server, number
        self.connection = server.connection
        self.answered = self.finished = self.host_finished = False

    def begin(self, params: dict[str, Any]) -> None:
        """The channel was opened: accept it, deny it, or see to it that this happens soon."""
        raise NotImplementedError

    def on_data(self, event: wire.Data) -> None:
        """Bytes came; give their credit back when they are used up."""
        self.connection.consumed(self.number, event.size)

    def on_message(self, body: dict[str, Any]) -> None:
        """A message came."""

    def on_writable(self) -> None:
        """A send that took less than it was given may go on."""

    def on_finished(self) -> None:
        """The host has said all."""

    def on_closed(self, lost: bool) -> None:
        """The channel died: reset by the host or, *lost*, together with its connection."""

    def accept(self, body: dict[str, Any] | None = None) -> None:
        self.answered = True
        self.connection.accept(self.number, body or {})

    def deny(self, error: CasemateError, code: str | None = None) -> None:
        self.answered = True
        self.server.forget(self)
        evidence = {name: value for name, value in error.evidence.items() if name not in ("code", "hint")}
        self.connection.deny(self.number, code or error.code, error.hint, message=error.message[:2000], **evidence)

    def finish(self) -> None:
        """All is said from this side."""
        self.finished = True
        self.connection.finish(self.number)
        if self.host_finished:
            self.server.forget(self)

    def reset(self, code: str, hint: str) -> None:
        self.server.forget(self)
        self.connection.reset(self.number, code, hint)


def text(params: Mapping[str, Any], name: str, default: str | None = None) -> str:
    found = optional_text(params, name)
    if found is not None:
        return found
    if default is None:
        raise InvalidSpec(f"{name} is missing")
    return default


def optional_text(params: Mapping[str, Any], name: str) -> str | None:
    found = params.get(name)
    if found is None:
        return None
    if not isinstance(found, str) or "\0" in found:
        raise InvalidSpec(f"{name} is not a text without NULs")
    return found


def whole(params: Mapping[str, Any], name: str, default: int) -> int:
    found = params.get(name)
    if found is None:
        return default
    if type(found) is not int or found < 0:
        raise InvalidSpec(f"{name} is not a whole number from 0 on")
    return found


def seconds(params: Mapping[str, Any], name: str) -> float | None:
    found = params.get(name)
    if found is None:
        return None
    if type(found) not in (int, float) or not 0 < found < 1e9:
        raise InvalidSpec(f"{name} is not a number of seconds over 0")
    return float(found)


def texts(params: Mapping[str, Any], name: str) -> list[str]:
    found = params.get(name)
    if not isinstance(found, list) or not all(isinstance(item, str) and "\0" not in item for item in found):
        raise InvalidSpec(f"{name} is not a list of texts without NULs")
    return found


def environment(params: Mapping[str, Any], name: str = "env") -> dict[str, str]:
    found = params.get(name)
    if found is None:
        return {}
    if not isinstance(found, dict) or not all(
        isinstance(value, str) and "\0" not in value and "\0" not in key and key and "=" not in key
        for key, value in found.items()
    ):
        raise InvalidSpec(f"{name} is not an object of texts")
    return found
