"""An agent in a real guest that lies, or says nothing: its machine is killed, its user told why, its host unmoved."""

from __future__ import annotations

import base64
import threading
import time
from collections.abc import Iterator
from contextlib import suppress

import pytest
from tests.faults.lies import LIES
from tests.faults.lying_agent import sabotaged
from tests.faults.world import reason_code, resident_bytes, wait_end
from tests.vm.vm_world import Daemon, build_image, new_home, run_daemon

from casemate import storage
from casemate.audit import Trail
from casemate.errors import AgentSilent, ExecRefused, GuestError, ProtocolViolation
from casemate.sdk import Sandbox

pytestmark = pytest.mark.vm
FOUND_OUT_S = 5.0
SILENCE_S = 3.0
MOST_BYTES = 16 << 20  # of the daemon's memory, that a lie may cost


@pytest.fixture(scope="module")
def liars(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    """A daemon whose guests lie when they are told to."""
    sources = sabotaged(tmp_path_factory.mktemp("sabotaged-sources"))
    home = new_home(tmp_path_factory.mktemp("sabotaged"))
    with run_daemon(home, PYTHONPATH=str(sources), CASEMATE_AGENT_TIMEOUT_S=str(SILENCE_S)) as daemon:
        build_image(daemon)
        yield daemon


@pytest.fixture(scope="module")
def honest(liars: Daemon) -> Iterator[Sandbox]:
    with Sandbox.create(url=liars.url, idle_timeout_s=None) as sandbox:
        yield sandbox


@pytest.fixture
def liar(liars: Daemon, honest: Sandbox, no_trace: None) -> Iterator[Sandbox]:
    with Sandbox.create(url=liars.url) as sandbox:
        yield sandbox
    assert honest.commands.run("echo here").stdout == "here\n"


async def violations(daemon: Daemon) -> list[str]:
    """The sandboxes that the audit trail has violations of; the chain is whole."""
    database = storage.open(daemon.home / "casemate.db")
    try:
        trail = Trail(database, "reader")
        assert await trail.verify() is None
        return [e.subject for e in await trail.listed("local") if e.event == "sandbox.protocol-violation"]
    finally:
        database.close()


def violated(daemon: Daemon, sandbox: Sandbox) -> bool:
    import anyio

    return sandbox.id in anyio.run(violations, daemon)


@pytest.mark.parametrize("name", LIES)
def test_a_lie_is_the_end(liar: Sandbox, liars: Daemon, name: str) -> None:
    said, times = LIES[name]
    before, started = resident_bytes(liars.pid), time.monotonic()
    with pytest.raises(ProtocolViolation):
        liar.commands.run(["lie", base64.b64encode(said).decode(), str(min(times, 3000))])
    assert reason_code(wait_end(liar)) == "protocol-violation"
    assert time.monotonic() - started < FOUND_OUT_S
    assert violated(liars, liar)
    assert resident_bytes(liars.pid) - before < MOST_BYTES


@pytest.mark.parametrize("lie", ["proof", "clock", "another boot", "nothing", "twice"])
def test_a_lie_in_the_hand_shake_is_the_end(liars: Daemon, honest: Sandbox, no_trace: None, lie: str) -> None:
    started = time.monotonic()
    if lie == "twice":  # the first one was right, so the sandbox may have been handed out
        try:
            sandbox = Sandbox.create(url=liars.url, env={"LIE": lie})
        except ProtocolViolation:
            pass
        else:
            assert reason_code(wait_end(sandbox)) == "protocol-violation"
            sandbox.close()
    else:
        with pytest.raises(ProtocolViolation):
            Sandbox.create(url=liars.url, env={"LIE": lie})
    assert time.monotonic() - started < FOUND_OUT_S
    assert honest.commands.run("echo here").stdout == "here\n"


def test_an_agent_that_never_introduces_itself(liars: Daemon, honest: Sandbox, no_trace: None) -> None:
    started = time.monotonic()
    with pytest.raises(AgentSilent):
        Sandbox.create(url=liars.url, env={"LIE": "silence"})
    assert SILENCE_S <= time.monotonic() - started < SILENCE_S + 3
    assert honest.commands.run("echo here").stdout == "here\n"


def test_an_agent_that_falls_silent(liar: Sandbox) -> None:
    """What is under way ends with the sandbox, also what had nothing to do with it."""
    ends: list[BaseException] = []

    def sleep() -> None:
        try:
            liar.commands.run("sleep 600")
        except GuestError as error:
            ends.append(error)

    asleep = threading.Thread(target=sleep)
    asleep.start()
    while not liar.commands.list():
        time.sleep(0.02)
    started = time.monotonic()
    with pytest.raises(AgentSilent):
        liar.commands.run(["lie-still"])
    assert reason_code(wait_end(liar)) == "guest-silent"
    assert time.monotonic() - started < 2 * SILENCE_S + 2
    asleep.join(5)
    assert [type(error) for error in ends] == [AgentSilent]


def test_an_agent_that_will_not_be_suspended(liar: Sandbox) -> None:
    """It answers nothing any more: whoever wants it suspended is told, and its silence is its end."""

    def fall_still() -> None:
        with suppress(GuestError):
            liar.commands.run(["lie-still"])

    still = threading.Thread(target=fall_still)
    still.start()
    time.sleep(0.2)
    started = time.monotonic()
    with pytest.raises(GuestError):
        liar.suspend()
    assert reason_code(wait_end(liar)) == "guest-silent"
    assert time.monotonic() - started < 2 * SILENCE_S + 2
    still.join(5)


@pytest.mark.parametrize("lie", ["proof", "clock", "another boot", "nothing", "silence"])
def test_a_lie_when_it_is_resumed_leaves_it_suspended(liar: Sandbox, lie: str) -> None:
    """What its user has in it is not lost for that; it never runs, and can be ended."""
    with pytest.raises(ExecRefused):
        liar.commands.run(["lie-later", lie])
    for _ in range(2):
        liar.suspend()
        with pytest.raises((ProtocolViolation, AgentSilent)):
            liar.resume()
        found = liar.refresh()
        assert (found.state, found.pid) == ("suspended", None)
