"""``casemate shell``, driven over a terminal of the test's own as a user would."""

from __future__ import annotations

import hashlib
import os
import signal
import subprocess
import sys
import threading
import time

import pytest
from local_terminal import at_terminal

from casemate.errors import ExecRefused
from casemate.sdk import AsyncClient, AsyncSandbox, Exited, Sandbox, Signaled

pytestmark = pytest.mark.vm
CURSES = """
import curses
def main(screen):
    curses.start_color()
    curses.init_pair(1, curses.COLOR_RED, curses.COLOR_BLACK)
    screen.addstr(2, 3, 'in red', curses.color_pair(1))
    screen.refresh()
    size = screen.getmaxyx()
    while (key := screen.getch()) != ord('q'):
        if key == curses.KEY_RESIZE:
            size = screen.getmaxyx()
        screen.clear()
        screen.addstr(4, 3, f'key {key} size {size[0]}x{size[1]}')
        screen.redrawwin()
        screen.refresh()
curses.wrapper(main)
"""


def test_a_shell_as_at_home(sandbox: Sandbox) -> None:
    """A prompt, a size that follows, colours, Ctrl-C, Ctrl-Z and fg, and the shell's own exit status."""
    with at_terminal(["shell", "--env", "A=b", sandbox.id]) as user:
        before = user.settings()
        user.type(b"export PS1='rea''dy> '\r")
        user.wait_for(b"ready> ")
        user.type(b"tty; stty size; echo $TERM; echo $((6*7)); test -t 0 && test -t 1 && test -t 2 && echo a''ll\r")
        shown = user.wait_for(b"all\r\n")
        assert b"/dev/pts/" in shown
        assert b"30 90\r\nxterm-256color\r\n42\r\n" in shown
        user.resize(41, 123)
        os.kill(user.process.pid, signal.SIGWINCH)
        until = time.monotonic() + 20
        while b"41 123" not in user.screen:
            assert time.monotonic() < until
            user.type(b"stty size; echo do''ne\r")
            user.wait_for(b"done\r\n")
        user.type(b"ls --color=always -d /tmp; echo do''ne\r")
        assert b"\x1b[" in user.wait_for(b"done\r\n")
        user.type(b"sleep 1000\r")
        time.sleep(1)
        user.type(b"\x03")
        user.type(b"echo status $?\r")
        user.wait_for(b"status 130\r\n")
        user.type(b"sleep 1001\r")
        time.sleep(1)
        user.type(b"\x1a")
        user.wait_for(b"Stopped")
        user.type(b"jobs; fg\r")
        user.wait_for(b"sleep 1001\r\n")
        time.sleep(1)
        user.type(b"\x03")
        user.type(b"exit 7\r")
        assert user.wait_end() == 7
        assert user.settings() == before


def test_a_program_that_paints_the_screen(sandbox: Sandbox) -> None:
    sandbox.files.write("paint.py", CURSES)
    with at_terminal(["shell", sandbox.id, "--", "python3", "paint.py"]) as user:
        assert b"\x1b[31m" in user.wait_for(b"in red")
        user.type(b"x")
        user.wait_for(b"key 120 size 30x90")
        user.type(b"\x1bOA")
        user.wait_for(b"key 259")  # the arrow key, as one key
        user.resize(20, 70)
        os.kill(user.process.pid, signal.SIGWINCH)
        user.wait_for(b"20x70")
        user.type(b"q")
        assert user.wait_end() == 0


def test_the_terminal_is_put_back_when_it_is_told_to_end(sandbox: Sandbox) -> None:
    with at_terminal(["shell", sandbox.id, "--", "sh", "-c", "echo re''ady; sleep 600"]) as user:
        before = user.settings()
        user.wait_for(b"ready")
        assert user.settings() != before
        user.process.terminate()
        assert user.wait_end() == 128 + signal.SIGTERM
        assert user.settings() == before
    until = time.monotonic() + 10
    while "sleep" in sandbox.commands.run("ps -e -o comm").stdout:  # what it ran has ended with it
        assert time.monotonic() < until
        time.sleep(0.1)


def test_much_is_pasted_and_much_is_shown(sandbox: Sandbox) -> None:
    """Both directions full at once, and neither waits for the other for ever."""
    data = os.urandom(4 << 20).hex().encode()
    got = bytearray()
    script = f"stty raw -echo; echo ready; head -c {len(data)} | tee copy"
    with sandbox.commands.terminal(["sh", "-c", script]) as terminal:
        pieces = terminal.output()
        while b"ready\n" not in got:
            got += next(pieces)
        got.clear()
        typing = threading.Thread(target=terminal.feed, args=(data,))
        typing.start()
        for piece in pieces:
            got += piece
        typing.join(30)
        assert terminal.end is not None
        assert terminal.end.end == Exited(0)
    assert hashlib.sha256(got).digest() == hashlib.sha256(data).digest()


def test_who_does_not_read_holds_it_up(sandbox: Sandbox) -> None:
    script = "stty raw; n=0; while :; do head -c 65536 /dev/zero; n=$((n+1)); echo $n > count; done"
    with sandbox.commands.terminal(["sh", "-c", script]):
        written, until = -1, time.monotonic() + 60
        while (now := int(sandbox.commands.run("cat count || echo 0").stdout or 0)) != written or now < 1:
            assert time.monotonic() < until, "it never stopped"
            written = now
            time.sleep(1)
    assert written * 65536 < 32 << 20


def test_a_terminal_outlives_who_looks_at_it(sandbox: Sandbox) -> None:
    with sandbox.commands.terminal(["sh"], detach=True) as terminal:
        terminal.feed(b"PS1=; stty -echo; echo fi''rst\n")
        seen = b""
        for piece in terminal.output():
            seen += piece
            if b"first\r\n" in seen:
                break
        exec_id, offset = terminal.exec_id, terminal.offset
    with sandbox.commands.attach_terminal(exec_id, offset=offset) as terminal:
        terminal.feed(b"echo second; exit 3\n")
        assert b"".join(terminal.output()) == b"second\r\n"
        assert terminal.end is not None
        assert terminal.end.end == Exited(3)


def test_any_program_controls_its_terminal(sandbox: Sandbox) -> None:
    """Also one that, unlike bash, does nothing to get it: /dev/tty is there, and Ctrl-C is a signal."""
    with sandbox.commands.terminal(["python3", "-c", "open('/dev/tty', 'w').write('mine\\n')"]) as terminal:
        assert b"".join(terminal.output()) == b"mine\r\n"
    with sandbox.commands.terminal(["sleep", "600"], timeout_s=30) as terminal:
        terminal.feed(b"\x03")
        assert b"".join(terminal.output()) == b"^C"
        assert terminal.end is not None
        assert terminal.end.end == Signaled(2)


def test_a_hang_up_reaches_what_runs_on_it(sandbox: Sandbox) -> None:
    with sandbox.commands.terminal(["sh", "-c", "sleep 60"]) as terminal:
        terminal.signal("HUP")
        assert b"".join(terminal.output()) == b""
        assert terminal.end is not None
        assert terminal.end.end in (Signaled(1), Exited(129))


def test_who_is_killed_while_nobody_reads_what_he_typed_leaves_nothing_behind(sandbox: Sandbox) -> None:
    """The daemon can't read on from him, since the guest doesn't; it has to notice in another way."""
    script = (
        "import sys\nfrom casemate.sdk import Sandbox\n"
        "argv = ['sh', '-c', 'stty raw; echo ready; exec sleep 600']\n"
        "with Sandbox.connect(sys.argv[1]).commands.terminal(argv) as t:\n"
        "    print(next(t.output()), flush=True)\n    t.feed(bytes(32 << 20))\n"
    )
    process = subprocess.Popen([sys.executable, "-c", script, sandbox.id], stdout=subprocess.PIPE)
    try:
        assert process.stdout
        assert b"ready" in process.stdout.readline()
        time.sleep(2)
        assert process.poll() is None
    finally:
        process.kill()
        process.communicate()
    until = time.monotonic() + 20
    while "sleep" in sandbox.commands.run("ps -e -o comm").stdout:
        assert time.monotonic() < until
        time.sleep(0.2)


def test_what_cannot_start_says_why(sandbox: Sandbox) -> None:
    with pytest.raises(ExecRefused), sandbox.commands.terminal(["/no/such"]):
        pass


def test_the_async_side_does_the_same(sandbox: Sandbox) -> None:
    import anyio

    async def main() -> bytes:
        async with AsyncClient() as client:
            box = await AsyncSandbox.connect(sandbox.id, client=client)
            async with box.commands.terminal(["sh", "-c", "stty -echo; read x; echo got $x"]) as terminal:
                await terminal.feed(b"word\n")
                return b"".join([piece async for piece in terminal.output()])

    assert b"got word\r\n" in anyio.run(main)
