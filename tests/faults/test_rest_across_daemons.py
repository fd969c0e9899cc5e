"""Suspended by one daemon, resumed by the next, also after a reboot of the host: all of it goes on; a gap is told."""

from __future__ import annotations

import gc
import json
import os
import shutil
import signal
import threading
import time
from contextlib import suppress
from pathlib import Path

import anyio
import pytest
from fault_world import daemon_on, events, folders, until, vmms
from rest_world import Follower

from casemate.errors import CasemateError, ImageBroken, NotFound, RequestError, SealBroken
from casemate.sdk import AsyncClient, AsyncSandbox, Client, Keys, Sandbox
from casemate.sdk.results import Output

pytestmark = [
    pytest.mark.vm,
    pytest.mark.slow,
    # httpcore leaves the socket of a refused connection to the garbage collector
    pytest.mark.filterwarnings("ignore:unclosed <socket:ResourceWarning"),
]
FLOOD = """
import sys, time
for n in range(400_000): print(f'{n:09d}')
sys.stdout.flush()
open('flooded', 'w').close()
time.sleep(600)
"""
LISTEN = """
import socket
with socket.create_server(('127.0.0.1', 7000)) as server:
    print('ready', flush=True)
    while True:
        there, _ = server.accept()
        there.sendall(b'hello')
        there.close()
"""


def counted(count: int) -> bytes:
    return b"".join(b"%d\n" % n for n in range(1, count + 1))


def first_lines(sandbox: Sandbox, exec_id: str, offset: int, count: int) -> tuple[int, bytes]:
    """From *offset* of its output on: where what is held begins, and at least so many lines from there."""
    start, text = -1, b""
    with sandbox.commands.attach(exec_id, stdout_offset=offset) as follower:
        for piece in follower.output():
            start = piece.offset if start < 0 else start
            text += piece.data
            if text.count(b"\n") >= count:
                break
    return start, text


def detached(sandbox: Sandbox, program: str, *, until_ready: bool = False) -> str:
    with sandbox.commands.start(["python3", "-c", program], detach=True) as running:
        if until_ready:
            assert next(iter(running.output())) == Output("stdout", 0, b"ready\n")
        return running.exec_id


def rebooted(home: Path, sandbox_id: str) -> None:
    """As if the host had been started again since."""
    path = home / "sandboxes" / sandbox_id / "meta.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"boot_id": "another"}))


@pytest.mark.timeout(200)
@pytest.mark.parametrize("end", [signal.SIGTERM, signal.SIGKILL])
def test_all_of_it_goes_on(home: Path, no_trace: None, end: signal.Signals) -> None:
    with daemon_on(home) as running:
        url = str(running.client.target)
        sandbox = Sandbox.create(client=running.client, name="sleeper", idle_timeout_s=None)
        flood, listening = detached(sandbox, FLOOD), detached(sandbox, LISTEN, until_ready=True)
        tied = Follower(url, sandbox.id)  # an exec that ends when its follower goes
        terminal = anyio.run(started_terminal, url, sandbox.id)
        sandbox.files.write("plain", b"kept")
        boot_id = sandbox.files.read("/proc/sys/kernel/random/boot_id")
        sandbox.commands.run("until test -e flooded; do sleep 0.1; done", check=True, timeout_s=60)
        until(lambda: len(tied.lines) > 20, "it counts")
        sandbox.suspend()
        assert not vmms(home)
        running.process.send_signal(end)
        assert running.wait_dead() == (0 if end == signal.SIGTERM else -end)
        assert tied.wait_end() is not None
    rebooted(home, sandbox.id)
    with daemon_on(home) as running:
        assert sandbox.id not in running.recovered.get("sandboxes", ())
        again = Sandbox.connect("sleeper", client=running.client)
        assert (again.id, again.info.state, again.info.pid) == (sandbox.id, "suspended", None)
        assert again.resume().state == "running"
        before = time.time()
        assert before - 0.1 < float(again.commands.run("date +%s.%N").stdout) < time.time() + 0.1
        assert again.files.read("plain") == b"kept"
        assert again.files.read("/proc/sys/kernel/random/boot_id") == boot_id
        known = {e["exec_id"] for e in again.commands.list()}
        assert known >= {flood, listening, tied.exec_id, terminal}
        start, text = first_lines(again, tied.exec_id, len(tied.text), 30)
        assert start == len(tied.text)
        whole = bytes(tied.text) + text
        whole = whole[: whole.rindex(b"\n") + 1]
        assert whole == counted(whole.count(b"\n"))
        assert first_lines(again, tied.exec_id, 0, 5)[1].startswith(counted(5))
        a_gap_is_told(again, flood)
        with pytest.raises(RequestError), again.commands.attach(tied.exec_id, stdout_offset=1 << 30):
            pass
        assert b"still-kept." in anyio.run(taken_up_terminal, str(running.client.target), again.id, terminal)
        ask = "import socket; print(socket.create_connection(('127.0.0.1', 7000)).recv(9).decode())"
        assert again.commands.run(["python3", "-c", ask]).stdout == "hello\n"
        again.kill()
        assert sandbox.id not in folders(home)
    assert sandbox.id in events(home, "sandbox.resumed")
    gc.collect()  # httpcore's sockets of refused connections


def a_gap_is_told(sandbox: Sandbox, exec_id: str) -> None:
    """Of 4 MB that nobody read the oldest are gone; what is left says where it begins, and is right from there on."""
    start, text = first_lines(sandbox, exec_id, 0, 100)
    assert start > 0
    first = -(-start // 10)
    assert text[first * 10 - start :][:200] == b"".join(b"%09d\n" % n for n in range(first, first + 20))


async def started_terminal(url: str, sandbox_id: str) -> str:
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


async def taken_up_terminal(url: str, sandbox_id: str, exec_id: str) -> bytes:
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


@pytest.mark.timeout(120)
def test_a_daemon_that_is_told_to_stop_meanwhile(home: Path, no_trace: None) -> None:
    """SIGTERM in mid-suspend and in mid-resume: never torn; suspended, or ended as all that ran."""
    ends = list[str]()
    for act in (suspended, resumed):
        for delay_s in (0.01, 0.08, 0.2):
            with daemon_on(home) as running:
                sandbox = Sandbox.create(client=running.client, idle_timeout_s=None)
                sandbox.commands.run("echo kept > plain", check=True)
                if act is resumed:
                    sandbox.suspend()
                asking = threading.Thread(target=act, args=(str(running.client.target), sandbox.id))
                asking.start()
                time.sleep(delay_s)
                running.process.send_signal(signal.SIGTERM)
                assert running.wait_dead(30) == 0
                asking.join(20)
            assert not vmms(home)
            with daemon_on(home) as running:
                found = {i.id: i for i in Sandbox.list(all=True, client=running.client)}[sandbox.id]
                ends.append(found.state)
                if found.state == "suspended":
                    with Sandbox.connect(sandbox.id, client=running.client) as again:
                        assert again.files.read("plain") == b"kept\n"
                else:
                    assert found.state_reason is not None
                    assert (found.state, found.state_reason.code) == ("terminated", "daemon-stopped")
                assert sandbox.id not in folders(home)
    assert "suspended" in ends
    gc.collect()


def suspended(url: str, sandbox_id: str) -> None:
    with suppress(CasemateError), Client(url) as client:
        Sandbox.connect(sandbox_id, client=client).suspend()


def resumed(url: str, sandbox_id: str) -> None:
    with suppress(CasemateError), Client(url) as client:
        Sandbox.connect(sandbox_id, client=client).resume()


@pytest.mark.timeout(120)
def test_what_is_another_tenants(home: Path, no_trace: None) -> None:
    """A suspended sandbox can't be seen, resumed, read or ended by another; nor its files given to another's."""
    with daemon_on(home, CASEMATE_LISTEN="127.0.0.1:0") as running:
        clients = dict[str, Client]()
        for tenant in ("alice", "mallory"):
            key = str(Keys(running.client).create(tenant=tenant, scopes=("*",))["key"])
            clients[tenant] = Client(f"http://{running.listen}", api_key=key)
        alices = Sandbox.create(client=clients["alice"], name="hers")
        alices.files.write("secret", b"of hers")
        alices.suspend()
        others = clients["mallory"]
        assert Sandbox.list(all=True, client=others) == []
        for ref in (alices.id, alices.id[:12], "hers"):
            with pytest.raises(NotFound):
                Sandbox.connect(ref, client=others)
            for method, path in (
                ("POST", "resume"), ("POST", "suspend"), ("GET", ""), ("DELETE", ""), ("GET", "execs"),
                ("GET", "stats"), ("GET", "files"), ("GET", "logs"),
            ):  # fmt: skip
                body = {} if path == "resume" else None
                params = {"path": "secret"} if path == "files" else None
                with pytest.raises(NotFound):
                    others.call(method, f"/v1/sandboxes/{ref}/{path}".rstrip("/"), body=body, params=params)
        assert alices.refresh().state == "suspended"
        assert not vmms(home)
        theirs = Sandbox.create(client=others)
        theirs.suspend()
        for attack in (swap_all, swap_parts, cross_link):
            mine, hers = (home / "sandboxes" / i / "suspended" for i in (theirs.id, alices.id))
            mine.rename(home / "was")
            shutil.copytree(home / "was", mine)
            attack(mine, hers)
            for path in (mine, *mine.iterdir()):  # as if the daemon had made them
                os.chown(path, hers.stat().st_uid, hers.stat().st_gid, follow_symlinks=False)
            with pytest.raises((SealBroken, ImageBroken)):
                theirs.resume()
            assert not vmms(home)
            shutil.rmtree(mine)
            (home / "was").rename(mine)
        theirs.resume()
        assert theirs.commands.run("cat secret").stdout == ""
        theirs.kill()
        assert alices.files.read("secret") == b"of hers"
        alices.kill()
        for client in clients.values():
            client.close()  # theirs was ended, and hers
    gc.collect()


def swap_all(mine: Path, hers: Path) -> None:
    shutil.rmtree(mine)
    shutil.copytree(hers, mine)


def swap_parts(mine: Path, hers: Path) -> None:
    for name in ("state", "difference", "disk"):
        (mine / name).unlink()
        shutil.copy(hers / name, mine / name)


def cross_link(mine: Path, hers: Path) -> None:
    (mine / "difference").unlink()
    (mine / "difference").symlink_to(hers / "difference")
