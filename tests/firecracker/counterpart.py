"""Plays a transcript's VMM on a unix socket, to code that plays its host. Does nothing that is in none."""

from __future__ import annotations

import json
import select
import socket
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from tests.firecracker.bare import address_below
from tests.firecracker.transcripts import ANSWER_S, FOLDER, SILENT_S, Event


def load(name: str) -> list[Event]:
    events: list[Event] = json.loads((FOLDER / f"{name}.json").read_text())["events"]
    return events


def merged(events: list[Event]) -> list[Event]:
    """With what is said one after the other said at once: a stream has no seams."""
    done: list[Event] = []
    for event in events:
        if done and event.get("vmm") == "says" == done[-1].get("vmm") and event["on"] == done[-1]["on"]:
            done[-1] = done[-1] | {"what": done[-1]["what"] + event["what"]}
        else:
            done.append(event)
    return done


class Counterpart:
    """One thread that goes through the events in their order. What the host does otherwise is an error, kept.

    With *acted*, which counts the host's acts, it waits for each; without, it is silent for a while and goes on.
    """

    def __init__(self, events: list[Event], listener: socket.socket, acted: threading.Semaphore | None) -> None:
        self._events = events
        self._listener = listener
        self._acted = acted
        self._stack = ExitStack()
        self._connections: dict[int, socket.socket] = {}
        self._thread = threading.Thread(target=self._play)
        self._error: Exception | None = None

    def __enter__(self) -> Counterpart:
        self._thread.start()
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        self._thread.join()
        if self._error is not None and kind is None:
            raise self._error

    def _play(self) -> None:
        with self._stack:
            try:
                for place, event in enumerate(self._events):
                    if "act" in event:
                        assert self._acted is None or self._acted.acquire(timeout=ANSWER_S), "the host did not act"
                    else:
                        number = event["on"]
                        after = next((later for later in self._events[place + 1 :] if later.get("on") == number), {})
                        self._host(event, after) if "host" in event else self._vmm(event, after)
            except Exception as error:
                self._error = error

    def _host(self, event: Event, after: Event) -> None:
        number = event["on"]
        if event["host"] == "connects":
            connection, _ = self._listener.accept()
            connection.settimeout(ANSWER_S)
            self._connections[number] = self._stack.enter_context(connection)
        elif event["host"] == "says":
            expected = event["what"].encode()
            unread = 1 if after.get("vmm") == "resets" else 0  # that is what a reset comes of
            heard = self._hear(number, len(expected) - unread)
            if unread:
                heard += self._connections[number].recv(unread, socket.MSG_PEEK)
            assert heard == expected, f"{heard!r} is not in the transcript, but {expected!r}"
        else:
            try:
                more = self._connections[number].recv(1)
            except ConnectionResetError:
                more = b""
            assert not more, f"{more!r} and more, where the transcript's host closes"

    def _hear(self, number: int, length: int) -> bytes:
        heard = b""
        while len(heard) < length and (piece := self._connections[number].recv(length - len(heard))):
            heard += piece
        return heard

    def _vmm(self, event: Event, after: Event) -> None:
        connection = self._connections[event["on"]]
        if event["vmm"] == "says":
            connection.sendall(event["what"].encode())
        elif event["vmm"] == "is silent" and self._acted:
            return  # until it acts, or speaks
        elif event["vmm"] == "is silent":
            early = select.select([connection], [], [], 2 * SILENT_S)[0]
            assert not early or "host" in after, "the host was to wait"
        else:
            connection.close()


@contextmanager
def run_counterpart(
    events: list[Event], folder: Path, acted: threading.Semaphore | None = None
) -> Iterator[Counterpart]:
    """Listening on ``v.sock`` in *folder*; leaving fails if the host did not do what the host of the transcript did."""
    with socket.socket(socket.AF_UNIX) as listener, address_below(folder, "v.sock") as address:
        listener.settimeout(ANSWER_S)
        listener.bind(address)
        listener.listen()
        with Counterpart(merged(events), listener, acted) as counterpart:
            yield counterpart
    (folder / "v.sock").unlink()


class Absent:
    """Takes everything that a scenario tells a machine, where a counterpart plays what comes of it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __getattr__(self, name: str) -> Any:
        return self if name == "process" else lambda *_, **__: self
