"""A context that lies, floods or breaks its socket ends typed and in time; the other contexts and the agent go on."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from cell_guest import CellGuest, Seen

from casemate.guest import cells, context, context_process
from casemate.guest.cgroups import LooseGroup
from casemate.guest.peer import Peer
from casemate.guest.zygote import Child

FIND = (
    "import os, socket, stat, json, array, time\n"
    "fds = [int(name) for name in os.listdir('/proc/self/fd')]\n"
    "def is_socket(fd):\n"
    "    try: return stat.S_ISSOCK(os.fstat(fd).st_mode)\n"
    "    except OSError: return False\n"
    "agent = socket.socket(fileno=os.dup(min(fd for fd in fds if is_socket(fd))))\n"
    "def say(message, *files):\n"
    "    rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array('i', files))] if files else []\n"
    "    agent.sendmsg([message if isinstance(message, bytes) else json.dumps(message).encode()], rights)\n"
)
DEATH_LIMIT_S = 5.0


@pytest.fixture(autouse=True)
def honest(guest: CellGuest) -> Iterator[None]:
    """Another context, which is to live through all of it."""
    if not any(found.context_id == "honest" for found in guest.contexts.all()):
        guest.act("context", op="create", context_id="honest")
        guest.run("alive = 'alive'", context="honest")
    yield
    assert guest.run("alive", context="honest").text == "'alive'"
    assert guest.run("1 + 1").text == "2"


def lie(guest: CellGuest, code: str) -> Seen:
    """Run *code*, which knows N, the number of its own cell."""
    guest.run("1")
    number = guest.contexts.find("default")._serial + 1
    seen = guest.begin_cell(f"{FIND}N = {number}\n{code}")
    guest.until(lambda: seen.over, DEATH_LIMIT_S)
    return seen


@pytest.mark.parametrize(
    ("said", "why"),
    [
        ("b'{}' + bytes([255])", "no JSON"),
        ("b'[]'", "no JSON object"),
        ("b'[' * 100_000", "no JSON"),
        ("b'{\"id\": ' + b'1' * 100_000 + b'}'", "no JSON"),
        ("{}", "a message out of turn"),
        ("{'event': ['end']}", "a message out of turn"),
        ("{'event': 'ready', 'about': {}}", "a message out of turn"),
        ("{'event': 'end', 'id': N, 'end': 1}", "an end that is no object"),
        ("{'event': 'end', 'id': N, 'end': {'kind': 'died'}}", "an end of a kind there is not"),
        ("{'event': 'end', 'id': N, 'end': {'kind': 'error', 'name': 1}}", "an end whose name is no text"),
        ("{'event': 'end', 'id': N, 'end': {'kind': 'ok'}, 'count': -1}", "a count that is none"),
        ("{'event': 'end', 'id': N, 'end': {'kind': 'ok'}, 'left_out': 'all'}", "a count that is none"),
        ("{'event': 'end', 'id': N - 1, 'end': {'kind': 'ok'}, 'count': 1}", "an end out of turn"),
        ("{'event': 'end', 'id': True, 'end': {'kind': 'ok'}, 'count': 1}", "a count that is none"),
        ("{'event': 'result', 'id': N + 1, 'body': '{}'}", "a result of a cell to come"),
        ("{'event': 'result', 'id': N}", "a result without a body"),
        ("{'event': 'result', 'id': N, 'body': ''}", "a result without a body"),
        ("{'event': 'result', 'id': N, 'body': {}}", "a result without a body"),
    ],
)
def test_what_no_context_says_ends_it(guest: CellGuest, said: str, why: str) -> None:
    seen = lie(guest, f"say({said}); time.sleep(60)")
    assert seen.end is not None
    assert seen.end["end"] == {"kind": "context-died", "reason": f"it sent {why}"}


@pytest.mark.parametrize(
    ("opened", "why"),
    [
        ("os.open('/etc/passwd', os.O_RDONLY)", "a file that is not in memory"),
        ("os.pipe()[0]", "a descriptor that is no file to read"),
        ("os.open('/', os.O_RDONLY)", "a descriptor that is no file to read"),
        ("os.open('/etc/passwd', os.O_PATH)", "a file that is not in memory"),
        ("os.open('/proc/self/fd/%d' % memory, os.O_WRONLY)", "a descriptor that is no file to read"),
        ("memory", "a result of another size"),
        ("os.memfd_create('empty')", "a result of another size"),
    ],
)
def test_what_is_no_memory_file_ends_it(guest: CellGuest, opened: str, why: str) -> None:
    code = f"memory = os.memfd_create('x'); os.write(memory, b'12345')\nfile = {opened}\n"
    before = len(os.listdir("/proc/self/fd"))
    seen = lie(guest, code + "say({'event': 'result', 'id': N, 'size': 9}, file); time.sleep(60)")
    assert seen.end is not None
    assert seen.end["end"] == {"kind": "context-died", "reason": f"it sent {why}"}
    guest.run("1")
    guest.until(lambda: len(guest.zygote._waiting) == 2)
    assert len(os.listdir("/proc/self/fd")) <= before + 2


def test_descriptors_nobody_asked_for_are_closed(guest: CellGuest) -> None:
    guest.run("1")
    guest.until(lambda: len(guest.zygote._waiting) == 2)
    before = len(os.listdir("/proc/self/fd"))
    code = (
        "f = os.open('/', os.O_RDONLY)\nfor _ in range(100): say({'event': 'result', 'id': 1, 'body': '{}'}, f, f, f)"
    )
    assert lie(guest, code).kind == "ok"
    assert len(os.listdir("/proc/self/fd")) <= before + 1


def test_an_end_of_its_own_making_is_only_its_own(guest: CellGuest) -> None:
    """It says that it has ended and goes on: what it says then is for nobody, and its next end is a lie."""
    seen = lie(guest, "say({'event': 'end', 'id': N, 'end': {'kind': 'ok'}, 'count': 7}); time.sleep(0.3)")
    assert seen.kind == "ok"
    waiting = guest.begin_cell("'next'")
    guest.until(lambda: waiting.over, DEATH_LIMIT_S)
    assert waiting.kind in ("ok", "context-died")


def test_a_closed_socket_ends_it(guest: CellGuest) -> None:
    seen = lie(guest, "agent.shutdown(socket.SHUT_RDWR); time.sleep(60)")
    assert seen.end is not None
    assert seen.end["end"] == {"kind": "context-died", "reason": "it closed its socket to the agent"}


def test_a_socket_that_is_none_any_more_ends_it(guest: CellGuest) -> None:
    guest.run("1")
    seen = guest.begin_cell(
        f"{FIND}os.dup2(os.open('/dev/null', os.O_RDWR), min(fd for fd in fds if is_socket(fd)))",
        timeout_s=0.5,
        grace_s=0.3,
    )
    guest.until(lambda: seen.over, DEATH_LIMIT_S)
    assert seen.kind == "context-died"


def test_more_results_than_it_may_are_counted(guest: CellGuest) -> None:
    code = (
        "for n in range(1200): say({'event': 'result', 'id': N, 'body': json.dumps({'data': {'text/plain': str(n)}})})"
    )
    seen = lie(guest, code)
    assert seen.kind == "ok"
    assert len(seen.results) == cells.RESULTS_AT_MOST
    assert seen.end is not None
    assert seen.end["left_out"]["results"] == 200
    assert seen.end["left_out"]["result_bytes"] > 200 * 10


def test_a_flood_of_results_ends_it(guest: CellGuest) -> None:
    seen = lie(guest, "while True: say({'event': 'result', 'id': N, 'body': '{}'})")
    assert seen.end is not None
    assert seen.end["end"] == {"kind": "context-died", "reason": "it sent far more results than it may"}
    assert seen.end["left_out"]["results"] == context._LIES_AFTER + 1


def test_a_flood_of_large_results_is_held_back(guest: CellGuest) -> None:
    guest.run("1")
    code = (
        f"{FIND}N = {guest.contexts.find('default')._serial + 1}\nbody = b'{{}}' + b' ' * 4_000_000\n"
        "while True:\n"
        "    memory = os.memfd_create('x'); os.write(memory, body)\n"
        "    say({'event': 'result', 'id': N, 'size': len(body)}, memory); os.close(memory)\n"
    )
    seen = guest.begin_cell(code, cell_id="large-flood", reading=False, timeout_s=2, grace_s=0.3)
    log = guest.contexts.table.find("large-flood").log
    guest.until(log.is_full)
    guest.let_pass(0.5)
    assert log.held_in_files < 64 << 20
    guest.until(lambda: guest.contexts.table.find("large-flood").ended, 4)
    ended = guest.contexts.table.find("large-flood").ended
    assert ended is not None
    assert ended["end"]["kind"] == "timed-out"
    guest.host.reset(seen.number, "closed")


def test_results_of_cells_long_ended_are_dropped(guest: CellGuest) -> None:
    seen = lie(
        guest, "say({'event': 'result', 'id': N - 1, 'body': '{}'}); say({'event': 'result', 'id': 0, 'body': '{}'})"
    )
    assert (seen.kind, seen.results) == ("ok", [])


def test_other_contexts_are_served_during_a_flood(guest: CellGuest) -> None:
    guest.run("1")
    flooding = guest.begin_cell(
        f"{FIND}while True: say({{'event': 'result', 'id': 0, 'body': 'x' * 100_000}})", cell_id="f"
    )
    for n in range(5):
        seen = guest.begin_cell(f"{n}", context="honest")
        guest.until(lambda seen=seen: seen.over, 2.0)  # type: ignore[misc]
        assert seen.text == str(n)
    guest.act("cell", op="interrupt", cell_id="f")
    guest.until(lambda: flooding.over, DEATH_LIMIT_S)


def test_a_stopped_context_is_timed_out(guest: CellGuest) -> None:
    seen = guest.begin_cell("import os, signal; os.kill(os.getpid(), signal.SIGSTOP)", timeout_s=0.3, grace_s=0.3)
    guest.until(lambda: seen.over, DEATH_LIMIT_S)
    assert seen.end is not None
    assert seen.end["end"] == {"kind": "timed-out", "after_s": 0.3, "state_kept": False}


def test_a_child_that_keeps_the_socket_does_not_hold_up_the_death(guest: CellGuest, tmp_path: Path) -> None:
    child = "os.setsid(); time.sleep(60); os._exit(0)"
    seen = lie(guest, f"\npid = os.fork()\nif pid == 0:\n    {child}\nos.write(1, b'%d' % pid)\nos._exit(4)")
    os.kill(int(seen.stdout), signal.SIGKILL)
    assert seen.end is not None
    assert seen.end["end"] == {"kind": "context-died", "reason": "exited with 4"}


class Listener:
    """An owner that only counts."""

    def __init__(self) -> None:
        self.heard = 0
        self.dead = False

    def has_room(self) -> bool:
        return True

    def takes_output(self) -> bool:
        return True

    def on_message(self, message: dict[str, object], files: list[int]) -> None:
        self.heard += 1

    def on_output(self, stream: int, output: bytes) -> None: ...

    def on_lie(self) -> None: ...

    def on_dead(self) -> None:
        self.dead = True


def test_the_last_words_of_a_dead_one_have_an_end(guest: CellGuest, monkeypatch: pytest.MonkeyPatch) -> None:
    """A child that holds its socket might fill that up for ever."""
    monkeypatch.setattr(context_process, "_LAST_WORDS", 50)
    listener, peer = Listener(), Peer()
    process = context_process.ContextProcess(guest.reactor, listener, Child(peer, LooseGroup()))
    for _ in range(100):
        peer.theirs.send(b"{}")
    process._on_socket()
    assert listener.heard == context_process._MESSAGES_PER_TURN  # whoever else waits has a turn
    for _ in range(3):
        process._on_exit(0)
    assert listener.dead
    assert listener.heard == context_process._MESSAGES_PER_TURN + 50
    process.close()


def test_a_child_that_says_more_after_the_death_is_not_heard_for_ever(guest: CellGuest) -> None:
    chatter = "while True: say({'event': 'result', 'id': N, 'body': '{}'})"
    seen = lie(guest, f"\nif os.fork() == 0:\n    os.setsid()\n    {chatter}\nos._exit(4)")
    assert seen.end is not None
    assert seen.end["end"] == {"kind": "context-died", "reason": "exited with 4"}
    guest.run("import subprocess")


def test_code_kept_by_a_context_costs_the_agent_nothing(guest: CellGuest) -> None:
    """The memory file of a long cell is emptied at its end."""
    keep = (
        "import os\nfds = [(int(name), '/proc/self/fd/' + name) for name in os.listdir('/proc/self/fd')]\n"
        "kept = [os.dup(fd) for fd, path in fds if os.path.exists(path) and 'memfd:cell' in os.readlink(path)]"
    )
    guest.run(f"{keep}\n", stdin=b"x" * 1_000_000)
    sizes = json.loads(guest.run("[os.fstat(f).st_size for f in kept]").text or "")
    assert sizes
    assert not any(sizes)
