"""Suspended by one daemon, resumed by the next, also after a reboot of the host: all of it goes on; a gap is told."""

from __future__ import annotations

import gc
import json
import signal
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest
from fault_world import Running, daemon_on, events, folders, until, vmms

from casemate.errors import CasemateError, NotFound, RequestError
from casemate.sdk import Client, Sandbox
from casemate.sdk._sync.commands import Exec

pytestmark = [
    pytest.mark.vm,
    pytest.mark.slow,
    # httpcore leaves the socket of a refused connection to the garbage collector
    pytest.mark.filterwarnings("ignore:unclosed <socket:ResourceWarning"),
]
COUNT = "i=0; while :; do i=$((i+1)); echo $i; sleep 0.02; done"
FLOOD = "import sys\nfor n in range(400_000): print(f'{n:09d}')\nprint('over', file=sys.stderr, flush=True)\nimport time; time.sleep(600)"  # noqa: E501
LISTEN = "import socket, time; s = socket.create_server(('127.0.0.1', 7000)); print('ready', flush=True)\nwhile True:\n    t, _ = s.accept(); t.sendall(b'hello'); t.close()"  # noqa: E501


def lines_from(running: Exec, count: int) -> tuple[int, bytes]:
    """The offset of the first byte that came, and at least so many lines from there on."""
    start, text = -1, b""
    for piece in running.output():
        if piece.stream != "stdout":
            continue
        start = piece.offset if start < 0 else start
        text += piece.data
        if text.count(b"\n") >= count:
            break
    return start, text


def counted(count: int) -> bytes:
    return b"".join(b"%d\n" % n for n in range(1, count + 1))


def another_boot(home: Path, sandbox_id: str) -> None:
    """As if the host had been started again since."""
    path = home / "sandboxes" / sandbox_id / "meta.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"boot_id": "another"}))


@pytest.mark.timeout(200)
@pytest.mark.parametrize("end", [signal.SIGTERM, signal.SIGKILL])
def test_all_of_it_goes_on(home: Path, no_trace: None, end: signal.Signals) -> None:
    with daemon_on(home) as running:
        sandbox = Sandbox.create(client=running.client, name="sleeper", idle_timeout_s=None, env={"A": "b"})
        with ExitStack() as held:
            commands = sandbox.commands
            detached = held.enter_context(commands.start(["sh", "-c", COUNT], detach=True))
            tied = held.enter_context(commands.start(["sh", "-c", COUNT]))
            flood = held.enter_context(commands.start(["python3", "-c", FLOOD], detach=True))
            listening = held.enter_context(commands.start(["python3", "-c", LISTEN], detach=True))
            assert next(iter(listening.output())).data == b"ready\n"
            _, seen = lines_from(detached, 20)
            _, seen_tied = lines_from(tied, 20)
            sandbox.files.write("plain", b"kept")
            boot_id = sandbox.files.read("/proc/sys/kernel/random/boot_id")
            ids = {name: e.exec_id for name, e in locals().items() if isinstance(e, Exec)}
            terminal_id = start_terminal(running, sandbox.id)
            sandbox.suspend()
            assert not vmms(home)
            running.process.send_signal(end)
            assert running.wait_dead() == (0 if end == signal.SIGTERM else -end)
            with pytest.raises(CasemateError):
                held.close()
                raise NotFound("nothing")  # leaving a follower of a daemon that is gone may say so, or not
    another_boot(home, sandbox.id)
    with daemon_on(home) as running:
        assert sandbox.id not in running.recovered.get("sandboxes", ())
        again = Sandbox.connect("sleeper", client=running.client)
        assert (again.id, again.info.state, again.info.pid) == (sandbox.id, "suspended", None)
        began = time.time()
        again.resume()
        print("resumed in", time.time() - began)
        assert abs(float(again.commands.run("date +%s.%N").stdout) - time.time()) < 0.5
        assert again.files.read("plain") == b"kept"
        assert again.files.read("/proc/sys/kernel/random/boot_id") != b""
        assert again.files.read("/proc/uptime") != b""
        assert boot_id
        known = {e["exec_id"] for e in again.commands.list()}
        assert known >= {*ids.values(), terminal_id}
        for exec_id, before in ((ids["detached"], seen), (ids["tied"], seen_tied)):
            with again.commands.attach(exec_id, stdout_offset=len(before)) as follower:
                start, text = lines_from(follower, 30)
            assert start == len(before)
            whole = before + text
            assert whole.startswith(counted(40))
            assert counted(whole.count(b"\n")).startswith(whole[: whole.rindex(b"\n") + 1])
        a_gap_is_told(again, ids["flood"])
        with again.commands.attach(ids["detached"], stdout_offset=0) as follower:
            assert lines_from(follower, 5)[1].startswith(b"1\n")
        with pytest.raises(RequestError), again.commands.attach(ids["detached"], stdout_offset=1 << 30):
            pass
        the_terminal_goes_on(running, again.id, terminal_id)
        assert connected(again, 7000) == b"hello"
        again.kill()
        assert folders(home) == set()
    assert sandbox.id in events(home, "sandbox.resumed")
    gc.collect()  # httpcore's sockets of refused connections


def a_gap_is_told(sandbox: Sandbox, exec_id: str) -> None:
    """Of 4 MB nobody read the oldest are gone; what is left says where it begins, and is right from there on."""
    with sandbox.commands.attach(exec_id, stdout_offset=0) as follower:
        start, text = lines_from(follower, 100)
    assert start > 0
    first = -(-start // 10)
    text = text[first * 10 - start :]
    assert text[:200] == b"".join(b"%09d\n" % n for n in range(first, first + 20))


async def _started(url: str, sandbox_id: str) -> str:
    from casemate.sdk import AsyncClient, AsyncSandbox

    async with AsyncClient(url) as client:
        sandbox = await AsyncSandbox.connect(sandbox_id, client=client)
        async with sandbox.commands.terminal(["sh"], detach=True) as terminal:
            await terminal.feed(b"word=kept; echo re''ady\n")
            shown = b""
            async for piece in terminal.output():
                shown += piece
                if b"ready\r\n" in shown:
                    break
            return terminal.exec_id


def start_terminal(running: Running, sandbox_id: str) -> str:
    import anyio

    return anyio.run(_started, str(running.client.target), sandbox_id)


async def _taken_up(url: str, sandbox_id: str, exec_id: str) -> bytes:
    import anyio

    from casemate.sdk import AsyncClient, AsyncSandbox

    shown = b""
    async with AsyncClient(url) as client:
        sandbox = await AsyncSandbox.connect(sandbox_id, client=client)
        async with sandbox.commands.attach_terminal(exec_id) as terminal:
            await terminal.feed(b"echo still-$word.\n")
            with anyio.fail_after(20):
                async for piece in terminal.output():
                    shown += piece
                    if b"still-kept.\r\n" in shown:
                        break
    return shown


def the_terminal_goes_on(running: Running, sandbox_id: str, exec_id: str) -> None:
    import anyio

    assert b"still-kept." in anyio.run(_taken_up, str(running.client.target), sandbox_id, exec_id)


def connected(sandbox: Sandbox, port: int) -> bytes:
    done = sandbox.commands.run(
        ["python3", "-c", f"import socket; print(socket.create_connection(('127.0.0.1', {port})).recv(9).decode())"]
    )
    return done.stdout.strip().encode()


@contextmanager
def tenant_of(running: Running, name: str) -> Iterator[Client]:
    made: dict[str, Any] = running.client.call("POST", "/v1/keys", body={"tenant": name, "scopes": ["*"]})
    yield Client(str(running.client.target), api_key=made["key"])


@pytest.mark.timeout(60)
def test_a_daemon_that_is_told_to_stop_while_it_suspends(home: Path, no_trace: None) -> None:
    """Not a sandbox is torn: it is suspended, or ended as all that ran."""
    for delay_s in (0.0, 0.05, 0.15, 0.3):
        with daemon_on(home) as running:
            sandbox = Sandbox.create(client=running.client, idle_timeout_s=None)
            sandbox.commands.run("echo kept > plain", check=True)
            rest = __import__("threading").Thread(target=_suspend, args=(str(running.client.target), sandbox.id))
            rest.start()
            time.sleep(delay_s)
            running.process.send_signal(signal.SIGTERM)
            assert running.wait_dead(30) == 0
            rest.join(10)
        until(lambda: not vmms(home), "its machine is gone")
        with daemon_on(home) as running:
            found = {i.id: i for i in Sandbox.list(all=True, client=running.client)}[sandbox.id]
            if found.state == "suspended":
                with Sandbox.connect(sandbox.id, client=running.client) as again:
                    assert again.files.read("plain") == b"kept\n"
            else:
                assert found.state == "terminated"
                assert found.state_reason
                assert found.state_reason.code == "daemon-stopped"
            assert folders(home) == set()
    gc.collect()


def _suspend(url: str, sandbox_id: str) -> None:
    from contextlib import suppress

    with suppress(CasemateError), Client(url) as client:
        Sandbox.connect(sandbox_id, client=client).suspend()
