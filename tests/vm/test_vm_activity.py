"""What a guest says of its work, what it rehearses, and that it goes on without its host."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from pathlib import Path

import anyio
import pytest
from machines import Clone, open_clone, open_driver
from tests.fair import fair_clock
from vm_world import Daemon

from casemate.sandbox import activity, cells, execs
from casemate.sandbox.activity import Activity
from casemate.sandbox.execs import ExecSpec, Output, Pty, Window
from casemate.sandbox.warmth import warm

pytestmark = pytest.mark.vm
WITHIN_S = 30.0
LONGER_THAN_THE_OLD_GRACE_S = 11.0
RING_BYTES = 1 << 20
ECHOED = b"%b\r\n%b\r\n"  # by the terminal, and by cat

# Each line on its standard input sets one more timer, due before those that are set already.
ONE_TIMER_MORE = """
import ctypes, select, signal, socket, sys, threading, time
libc = ctypes.CDLL(None)
class Times(ctypes.Structure):
    _fields_ = [(name, ctypes.c_long) for name in ("every_s", "every_ns", "s", "ns")]
def of_posix(due_s):
    timer = ctypes.c_void_p()
    assert libc.timer_create(1, None, ctypes.byref(timer)) == 0
    assert libc.timer_settime(timer, 0, ctypes.byref(Times(0, 0, due_s, 0)), None) == 0
def of_file(due_s, clock=1, absolute=0):
    fd = libc.timerfd_create(clock, 0)
    assert libc.timerfd_settime(fd, absolute, ctypes.byref(Times(0, 0, due_s, 0)), None) == 0
def of_wall_clock(due_s):
    of_file(int(time.time()) + due_s, 0, 1)
def in_thread(wait):
    return lambda due_s: threading.Thread(target=wait, args=(due_s,), daemon=True).start()
kinds = [
    lambda due_s: signal.setitimer(signal.ITIMER_REAL, due_s), of_posix, of_file, of_wall_clock, in_thread(time.sleep),
    in_thread(lambda due_s: select.poll().poll(due_s * 1000)), in_thread(lambda due_s: select.epoll().poll(due_s)),
    in_thread(lambda due_s: select.select([], [], [], due_s)), in_thread(lambda due_s: threading.Event().wait(due_s)),
]
for due_s, kind in zip(range(9000, 0, -1000), kinds):
    print(due_s, flush=True)
    sys.stdin.readline()
    kind(due_s)
    time.sleep(0.2)
print("all", flush=True)
sys.stdin.readline()
"""
OPEN_FILES = "import os, sys; kept = [os.eventfd(0) for _ in range(2100)]; print('open', flush=True); sys.stdin.read()"
MANY_TIMERS = ONE_TIMER_MORE.partition("kinds = [")[0] + (
    "for _ in range(1200): of_file(1000)\nprint('set', flush=True)\nsys.stdin.read()"
)


def on_a_clone(daemon: Daemon, folder: Path, act: Callable[[Clone], Awaitable[None]]) -> None:
    async def run() -> None:
        async with open_driver(daemon.home) as driver, open_clone(driver, daemon.home, folder) as clone:
            await act(clone)

    anyio.run(run)


async def until(clone: Clone, fits: Callable[[Activity], bool]) -> Activity:
    deadline = fair_clock() + WITHIN_S
    while not fits(said := await activity.ask(clone.link)):
        assert fair_clock() < deadline, said
        await anyio.sleep(0.1)
    return said


async def line(running: execs.Exec, lines: int = 1) -> bytes:
    said = b""
    while said.count(b"\n") < lines:
        piece = await running.read()
        assert isinstance(piece, Output), piece
        said += piece.data
    return said


async def told(clone: Clone) -> Activity:
    """With its first timer: after a look that took long, as on a busy host, the agent does not look again at once."""
    return await until(clone, lambda said: said.next_timer_ms != 0)


def test_every_kind_of_timer_is_seen_and_nothing_in_an_idle_guest(
    daemon: Daemon, tmp_path: Path, no_trace: None
) -> None:
    async def act(clone: Clone) -> None:
        idle = await told(clone)
        assert (idle.execs_running, idle.terminals_running, idle.cells_running, idle.next_timer_ms) == (0, 0, 0, None)
        spec = ExecSpec(("python3", "-c", ONE_TIMER_MORE), stdin=True)
        async with execs.start(clone.link, spec) as running:
            for due_s in range(9000, 0, -1000):
                assert await line(running) == b"%d\n" % due_s
                before = await told(clone)
                assert before.next_timer_ms is None or before.next_timer_ms > due_s * 1000, due_s
                await running.feed(b"\n")
                due = await until(clone, lambda said: said.next_timer_ms is not None and said.next_timer_ms > 300)
                while due.next_timer_ms is None or due.next_timer_ms > due_s * 1000:  # its own pause comes in between
                    due = await activity.ask(clone.link)
            assert await line(running) == b"all\n"
            last = await told(clone)
            assert last.next_timer_ms is not None
            assert 900_000 < last.next_timer_ms <= 1_000_000
        gone = await until(clone, lambda said: said.execs_running == 0 and said.next_timer_ms is None)
        assert gone.user_cpu_ms > idle.user_cpu_ms

    on_a_clone(daemon, tmp_path, act)


@pytest.mark.parametrize(("program", "said"), [(OPEN_FILES, b"open\n"), (MANY_TIMERS, b"set\n")])
def test_a_guest_with_too_much_to_look_through_keeps_its_agent(
    program: str, said: bytes, daemon: Daemon, tmp_path: Path, no_trace: None
) -> None:
    """The kernel's list takes a time that grows with its square: it may not become the agent's whole time."""

    async def act(clone: Clone) -> None:
        async with execs.start(clone.link, ExecSpec(("python3", "-c", program), stdin=True)) as running:
            assert await line(running) == said
            await activity.ask(clone.link)
            begun = fair_clock()
            for _ in range(50):
                assert (await activity.ask(clone.link)).next_timer_ms == 0
            assert fair_clock() - begun < 2

    on_a_clone(daemon, tmp_path, act)


def test_execs_terminals_and_cells_are_told_apart(daemon: Daemon, tmp_path: Path, no_trace: None) -> None:
    async def act(clone: Clone) -> None:
        link = clone.link
        async with execs.start(link, ExecSpec(("sleep", "500"))):
            said = await activity.ask(link)
            assert (said.execs_running, said.terminals_running, said.cells_running) == (1, 0, 0)
            assert said.is_work
            due = await until(clone, lambda said: bool(said.next_timer_ms))
            assert due.next_timer_ms is not None
            assert 400_000 < due.next_timer_ms <= 500_000
        async with execs.start(link, ExecSpec(("cat",), stdin=True, pty=Pty(Window(24, 80)))):
            said = await until(clone, lambda said: said.execs_running == 0)
            assert said.terminals_running == 1
            assert not said.is_work
        async with cells.run(link, "import time; time.sleep(300)", cells.RunCell()):
            said = await until(clone, lambda said: said.cells_running == 1)
            assert said.is_work
        before = await until(clone, lambda said: said.cells_running == 0)
        await clone.run("sh", "-c", "i=0; while [ $i -lt 20000 ]; do i=$((i+1)); done &")
        await until(clone, lambda said: said.user_cpu_ms > before.user_cpu_ms + 100)

    on_a_clone(daemon, tmp_path, act)


def test_what_runs_outlives_a_lost_stream(daemon: Daemon, tmp_path: Path, no_trace: None) -> None:
    async def act(clone: Clone) -> None:
        link = clone.link
        count = "i=0; while :; do i=$((i+1)); echo $i; sleep 0.1; done"
        flood = "echo begun; sleep 2; head -c 3000000 /dev/zero; sleep 500"
        code = (
            "import time\nx = 1; print('begun', flush=True)\n"
            "for _ in range(80): time.sleep(0.05); print('y' * 9999)\nx = 2"
        )
        async with (
            execs.start(link, ExecSpec(("sh", "-c", count))) as counting,
            execs.start(link, ExecSpec(("sh", "-c", flood))) as flooding,
            execs.start(link, ExecSpec(("cat",), stdin=True, pty=Pty(Window(24, 80)))) as terminal,
            cells.run(link, code, cells.RunCell()) as cell,
        ):
            assert (await line(flooding), await line(counting)) == (b"begun\n", b"1\n")
            assert isinstance(await cell.read(), cells.Begun)
            assert isinstance(await cell.read(), Output)
            await terminal.feed(b"before\n")
            assert await line(terminal, 2) == ECHOED % (b"before", b"before")
            await clone.lose_stream()
            await anyio.sleep(LONGER_THAN_THE_OLD_GRACE_S)
        said = await until(clone, lambda said: said.cells_running == 0)
        assert (said.execs_running, said.terminals_running) == (2, 1)
        assert (await clone.run_code("x"))[1].text == "2"
        async with execs.attach(clone.link, counting.exec_id, stdout_offset=2) as attached:
            heard = b""
            while heard.count(b"\n") < 50:
                piece = await attached.read()
                assert isinstance(piece, Output)
                assert piece.offset == 2 + len(heard)
                heard += piece.data
            assert heard.startswith(b"2\n3\n4\n")
            await attached.detach()
        async with execs.attach(clone.link, flooding.exec_id, stdout_offset=6) as attached:
            piece = await attached.read()
            assert isinstance(piece, Output)
            assert 6 + 3_000_000 - RING_BYTES - 65_536 <= piece.offset <= 6 + 3_000_000 - RING_BYTES + 65_536
            await attached.detach()
        seen = len(ECHOED % (b"before", b"before"))
        async with execs.attach(clone.link, terminal.exec_id, stdout_offset=seen) as attached:
            await attached.feed(b"after\n")
            assert await line(attached, 2) == ECHOED % (b"after", b"after")

    on_a_clone(daemon, tmp_path, act)


def test_a_rehearsal_leaves_no_trace(daemon: Daemon, tmp_path: Path, no_trace: None) -> None:
    groups = "ls -d /sys/fs/cgroup/user/*/ | wc -l; cat /sys/fs/cgroup/user/*/cgroup.procs | wc -l"

    async def act(clone: Clone) -> None:
        await warm(clone.link, clone.link.guest_id)
        assert await execs.listed(clone.link) == []
        said = await activity.ask(clone.link)
        assert (said.execs_running, said.cells_running, said.next_timer_ms) == (0, 0, None)
        output, _ = await clone.run("sh", "-c", groups)
        spares, processes = map(int, output.split())
        assert spares <= processes  # each group has its waiting child; the shell's own has several

    on_a_clone(daemon, tmp_path, act)
