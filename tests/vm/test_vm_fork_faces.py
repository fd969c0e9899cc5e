"""Fork and snapshot as their users have them: the command line, the SDK in both its kinds, the API."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from uuid import uuid4

import anyio
import pytest
from resting import wait_until
from vm_world import Daemon, home_like, run_daemon

from casemate import errors
from casemate.sdk import AsyncSandbox, Client, Sandbox

pytestmark = [pytest.mark.vm, pytest.mark.slow]
GONE_S = 20.0
COUNTING = "nohup sh -c 'while :; do date +%s%N >> ticks; sleep 0.2; done' >/dev/null 2>&1 </dev/null &"


@pytest.fixture
def parent(daemon: Daemon, no_trace: None) -> Iterator[Sandbox]:
    """A sandbox that has lived: a variable, a file, a program in the background."""
    with Sandbox.create(labels={"kind": "parent"}, env={"INHERITED": "yes"}) as sandbox:
        sandbox.run_code("x = 41")
        sandbox.files.write("note.txt", b"before")
        sandbox.commands.run(COUNTING)
        yield sandbox


def casemate(*words: str) -> subprocess.CompletedProcess[str]:
    argv = [sys.executable, "-m", "casemate.cli", *words]
    return subprocess.run(argv, capture_output=True, text=True, timeout=120, check=False)


def ticks(sandbox: Sandbox) -> int:
    return len(sandbox.files.read("ticks").splitlines())


def assert_lives_on(sandbox: Sandbox) -> None:
    """With what its parent had: variable, file, environment, and the program that goes on."""
    assert sandbox.run_code("x + 1").text == "42"
    assert sandbox.files.read("note.txt") == b"before"
    assert sandbox.commands.run("echo $INHERITED").stdout == "yes\n"
    first = ticks(sandbox)
    wait_until(lambda: ticks(sandbox) > first)


def test_the_command_line_forks_and_copies_go_on(parent: Sandbox) -> None:
    done = casemate("fork", parent.id, "--count", "2", "--label", "try=1", "--json")
    assert done.returncode == 0, done.stderr
    copies = json.loads(done.stdout)["sandboxes"]
    assert [copy["forked_from"] for copy in copies] == [parent.id] * 2
    (third,) = casemate("fork", parent.id).stdout.split()
    try:
        for copy in copies:
            assert (copy["state"], copy["name"], copy["labels"]) == ("running", None, {"kind": "parent", "try": "1"})
        assert json.loads(casemate("inspect", third).stdout)["labels"] == {"kind": "parent"}
        for sandbox_id in (copies[0]["id"], third):
            with Sandbox.connect(sandbox_id) as copy:
                assert_lives_on(copy)
        assert_lives_on(parent)
    finally:
        casemate("kill", third, *(copy["id"] for copy in copies))
    assert [info.id for info in Sandbox.list()] == [parent.id]


def test_what_one_changes_shows_in_no_other(parent: Sandbox) -> None:
    first, second = parent.fork(2)
    with first, second:
        first.run_code("x = 1")
        first.files.write("note.txt", b"first's")
        parent.files.write("mine.txt", b"")
        assert second.run_code("x").text == "41"
        assert parent.run_code("x").text == "41"
        assert (second.files.read("note.txt"), parent.files.read("note.txt")) == (b"before", b"before")
        with pytest.raises(errors.FileRefused):
            second.files.read("mine.txt")
        (grandchild,) = first.fork()
        with grandchild:
            assert grandchild.info.forked_from == first.id
            assert grandchild.run_code("x").text == "1"


def test_the_same_with_await(parent: Sandbox) -> None:
    async def main() -> None:
        sandbox = await AsyncSandbox.connect(parent.id)
        told: list[str] = []
        copies = await sandbox.fork(2, progress=lambda step, message, fraction: told.append(step))
        try:
            async with anyio.create_task_group() as tasks:
                for copy in copies:
                    tasks.start_soon(check, copy)
        finally:
            for copy in copies:
                await copy.kill()
        await sandbox.aclose()
        assert told, "nothing was told of what took longest"

    async def check(copy: AsyncSandbox) -> None:
        assert (await copy.run_code("x + 1")).text == "42"

    anyio.run(main)


def test_with_one_key_copies_are_made_once(parent: Sandbox) -> None:
    with Client() as client:
        path, key = f"/v1/sandboxes/{parent.id}/fork", uuid4().hex
        first = client.call("POST", path, body={"count": 2}, idempotency_key=key, answer_s=60)
        again = client.call("POST", path, body={"count": 2}, idempotency_key=key, answer_s=60)
        assert first == again
        assert {info.id for info in Sandbox.list()} == {parent.id, *(copy["id"] for copy in first["sandboxes"])}
        with pytest.raises(errors.IdempotencyConflict):
            client.call("POST", path, body={"count": 3}, idempotency_key=key, answer_s=60)
        size_bytes = len(json.dumps(first["sandboxes"][0]))
        assert size_bytes * 64 < 256 << 10, "or the answer to the largest fork could not be repeated"
        for copy in first["sandboxes"]:
            client.call("DELETE", f"/v1/sandboxes/{copy['id']}")


@pytest.mark.parametrize("progress", [False, True])
@pytest.mark.parametrize("after_s", [0.05, 0.4, 1.0])
def test_of_a_fork_whose_client_goes_away_nothing_is_left(
    daemon: Daemon, parent: Sandbox, after_s: float, progress: bool
) -> None:
    before = sorted(os.listdir(daemon.home / "snapshots"))
    body = json.dumps({"count": 8, "progress": progress}).encode()
    head = f"POST /v1/sandboxes/{parent.id}/fork HTTP/1.1\r\nHost: c\r\nContent-Length: {len(body)}\r\n\r\n"
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(str(daemon.home / "run" / "daemon.sock"))
        client.sendall(head.encode() + body)
        time.sleep(after_s)
    wait_until(lambda: left(daemon.home) == ([parent.id], before), GONE_S)
    assert [info.id for info in Sandbox.list()] == [parent.id]
    assert_lives_on(parent)
    (copy,) = parent.fork()
    copy.kill()


def left(home: Path) -> tuple[list[str], list[str]]:
    return sorted(os.listdir(home / "sandboxes")), sorted(os.listdir(home / "snapshots"))


def test_a_moment_is_kept_by_the_command_line_and_is_an_image(parent: Sandbox) -> None:
    done = casemate("snapshot", parent.id, "--name", "kept", "--tag", "good", "--json")
    assert done.returncode == 0, done.stderr
    kept = json.loads(done.stdout)
    assert (kept["name"], kept["tag"], kept["contains_session_state"]) == ("kept", "good", True)
    assert 0 < kept["pause_ms"] <= kept["frozen_ms"] <= kept["took_ms"]
    try:
        parent.run_code("x = 'changed since'")
        made = casemate("create", "--image", "kept:good", "--env", "INHERITED=yes")
        assert made.returncode == 0, made.stderr
        with Sandbox.connect(made.stdout.strip()) as sandbox:
            assert sandbox.info.image == f"kept@{kept['version']}"
            assert_lives_on(sandbox)
        again = parent.snapshot("kept")
        assert (again["version"], again["tag"]) == (kept["version"] + 1, None)
        with Sandbox.create("kept") as newer:
            assert newer.run_code("x").text == "'changed since'"
    finally:
        with Client() as client:
            for version in client.snapshots.list():
                if version["name"] == "kept":
                    client.snapshots.remove(f"kept@{version['version']}")


def test_what_cannot_be_forked_says_why(parent: Sandbox) -> None:
    for count in (0, 65, -1):
        with pytest.raises(errors.InvalidSpec):
            parent.fork(count)
    done = casemate("fork", "nobody")
    assert (done.returncode, done.stdout) == (1, "")
    assert "nobody" in done.stderr
    with Sandbox.create(auto_resume=False) as asleep:
        asleep.suspend()
        for act in (asleep.fork, lambda: asleep.snapshot("never")):
            with pytest.raises(errors.StateConflict):
                act()
        assert asleep.refresh().state == "suspended"
    parent.suspend()
    (copy,) = parent.fork()
    with copy:
        assert_lives_on(copy)


def test_what_does_not_fit_is_refused_and_leaves_nothing(built: Path, tmp_path: Path, no_trace: None) -> None:
    home = home_like(built, tmp_path)
    with run_daemon(home, CASEMATE_MEMORY_BUDGET_MIB="700") as daemon, Sandbox.create(url=daemon.url) as parent:
        before = left(home)
        with pytest.raises(errors.HostFull):
            parent.fork(8)
        wait_until(lambda: left(home) == before)
        (copy,) = parent.fork()
        with copy:
            assert copy.commands.run("true").ok
