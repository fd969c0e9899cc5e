"""What runs when the stream is lost goes on; what it says then is nobody's, least of all the next connection's."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from casemate import wire
from casemate.guest.cgroups import Groups
from casemate.guest.contexts import Contexts
from casemate.guest.exec_table import ExecTable
from casemate.guest.handshake import Handshake
from casemate.guest.reactor import Reactor
from casemate.guest.reaper import Reaper
from casemate.guest.server import Server
from casemate.guest.spawner import Spawner
from casemate.guest.surroundings import Surroundings
from casemate.sandbox import Introduction

DEADLINE_S = 20.0


class Machine:
    """A machine that changes nothing: the agent runs in this process."""

    def add_entropy(self, entropy: bytes) -> None: ...
    def set_clock(self, wall_clock_ns: int) -> None: ...
    def set_identity(self, hello: object, boot_id: str) -> None: ...


class NoPython:
    contexts: Contexts | None = None

    def prepare(self, zygote: bool, done: Callable[[dict[str, Any]], None], failed: Callable[[str], None]) -> None:
        failed("this test has none")

    def rehearse(self, done: Callable[[], None]) -> None:
        done()


class Guest:
    """An agent with its spawner, in this process, and the host's end of its wire."""

    def __init__(self) -> None:
        self.reactor = Reactor()
        self.reaper = Reaper(self.reactor, only_adopted=True)
        groups = Groups(self.reactor, None)
        self.spawner = Spawner(self.reactor, self.reaper, groups, spares=1)
        self.spawner.start()
        surroundings = Surroundings(change_user=False)
        introduction = Handshake(Machine(), "0")  # type: ignore[arg-type]
        self.server = Server(
            self.reactor, groups, ExecTable(self.reactor, self.spawner), surroundings, introduction, NoPython()
        )
        self.begin()

    def begin(self) -> None:
        """A host that knows nothing of an earlier one."""
        self.host = wire.Connection(wire.Side.HOST, nonce=os.urandom(16))
        self.host.synchronise(reopened=True)
        self.host.hello(Introduction("guest", cwd="/").hello())
        self.events: list[wire.Event] = []

    def until(self, kind: type[wire.Event], channel: int = 0) -> Any:
        """The next event of *kind*, on *channel* if it has one."""
        deadline = time.monotonic() + DEADLINE_S
        while True:
            for event in self.events:
                if isinstance(event, kind) and getattr(event, "channel", 0) == channel:
                    self.events.remove(event)
                    return event
            assert time.monotonic() < deadline, f"no {kind.__name__} came; {self.events}"
            while chunk := self.host.outgoing():
                self.server.receive(chunk)
            while chunk := self.server.connection.outgoing():
                self.events += self.host.receive(chunk)
            self.reactor.turn(0.01)

    def close(self) -> None:
        self.spawner.close()
        self.reaper.close()
        self.reactor.close()


@pytest.fixture
def guest() -> Iterator[Guest]:
    guest = Guest()
    yield guest
    guest.close()


def start(guest: Guest, exec_id: str, *argv: str) -> int:
    params = {"op": "start", "exec_id": exec_id, "argv": list(argv), "on_disconnect": "kill", "stdin": True}
    number = guest.host.open("exec", params)
    guest.until(wire.Accepted, number)
    return number


@pytest.mark.parametrize("by", ["lost", "a new SYNC"])
def test_an_exec_outlives_its_stream_and_is_attached(guest: Guest, by: str) -> None:
    number = start(guest, "one", "sh", "-c", "echo begun; read line; echo $line")
    assert guest.until(wire.Data, number).data == b"begun\n"
    if by == "lost":
        guest.server.lose()
    guest.begin()
    attached = guest.host.open("exec", {"op": "attach", "exec_id": "one", "stdout_offset": 6, "stderr_offset": 0})
    assert guest.until(wire.Accepted, attached).body["stdout_offset"] == 6
    guest.host.send(attached, 1, b"and on\n")
    assert guest.until(wire.Data, attached).data == b"and on\n"
    assert guest.until(wire.Message, attached).body["end"] == {"kind": "exited", "code": 0}


def test_a_conversation_at_rest_goes_on_over_the_next_stream(guest: Guest) -> None:
    number = start(guest, "one", "sh", "-c", "echo begun; read line; echo $line")
    assert guest.until(wire.Data, number).data == b"begun\n"
    guest.host.send(number, 1, b"said before, ")
    guest.host.rest()
    guest.until(wire.Rested)
    guest.server.lose()
    guest.host.go_on()
    guest.host.send(number, 1, b"and after\n")
    assert guest.until(wire.Data, number).data == b"said before, and after\n"
    assert guest.until(wire.Message, number).body["end"] == {"kind": "exited", "code": 0}


def test_nonsense_ends_a_conversation_at_rest(guest: Guest) -> None:
    """Else its connection would be one that has failed, for ever."""
    number = start(guest, "one", "cat")
    guest.host.rest()
    guest.until(wire.Rested)
    guest.server.receive(b"nonsense" * 4)
    guest.begin()
    assert guest.until(wire.Ready)
    attached = guest.host.open("exec", {"op": "attach", "exec_id": "one", "stdout_offset": 0, "stderr_offset": 0})
    guest.until(wire.Accepted, attached)
    guest.host.send(attached, 1, b"heard\n")
    assert guest.until(wire.Data, attached).data == b"heard\n"
    guest.host.reset(number, "closed")


def test_one_that_was_reset_dies_as_its_starter_wished(guest: Guest) -> None:
    number = start(guest, "one", "sleep", "100")
    guest.host.reset(number, "closed")
    watching = guest.host.open("exec", {"op": "attach", "exec_id": "one", "stdout_offset": 0, "stderr_offset": 0})
    assert guest.until(wire.Message, watching).body["end"] == {"kind": "signaled", "signal": 9}


def test_an_answer_that_comes_too_late_is_not_the_next_connections(guest: Guest) -> None:
    """Channel numbers begin anew: the exec below was channel 1, and so is what the next host opens first."""
    guest.until(wire.Ready)
    guest.host.open("exec", {"op": "start", "exec_id": "one", "argv": ["sh", "-c", "echo mine; sleep 100"]})
    while chunk := guest.host.outgoing():
        guest.server.receive(chunk)  # it is being started: no turn of the loop yet
    guest.begin()
    number = guest.host.open("exec", {"op": "start", "exec_id": "two", "argv": ["echo", "other"]})
    assert number == 1
    assert guest.until(wire.Accepted, number).body["exec_id"] == "two"
    assert guest.until(wire.Data, number).data == b"other\n"
    assert guest.until(wire.Message, number).body["end"] == {"kind": "exited", "code": 0}
    started = guest.server.execs.find("one")
    assert started.end is None
    started.kill()


def test_a_refusal_that_comes_too_late_ends_nothing_of_the_next_connections(guest: Guest) -> None:
    guest.until(wire.Ready)
    guest.host.open("exec", {"op": "start", "exec_id": "one", "argv": ["/no/such/program"]})
    while chunk := guest.host.outgoing():
        guest.server.receive(chunk)
    guest.begin()
    number = start(guest, "two", "cat")
    assert number == 1
    assert [program.exec_id for program in guest.server.execs.all()] == ["two"]  # one was refused by now
    guest.host.send(number, 1, b"heard\n")
    assert guest.until(wire.Data, number).data == b"heard\n"
    guest.host.reset(number, "closed")
