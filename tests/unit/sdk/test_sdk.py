"""The SDK against a real HTTP server on a real unix socket; the async side and the generated one."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from pathlib import Path

import anyio
import pytest
from tests.unit.sdk.fake_daemon import FakeDaemon

from casemate import errors
from casemate.sdk import (
    AsyncClient,
    AsyncImages,
    AsyncSandbox,
    Client,
    CommandFailed,
    Exited,
    Images,
    Sandbox,
    Signaled,
    TimedOut,
)

WAIT_S = 5


@pytest.fixture
def sandbox(fake: FakeDaemon) -> Iterator[Sandbox]:
    with Sandbox.create() as sandbox:
        yield sandbox


def wait_until(condition: object) -> None:
    deadline = time.monotonic() + WAIT_S
    while not condition():  # type: ignore[operator]
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_a_sandbox_is_killed_when_its_block_ends(fake: FakeDaemon) -> None:
    with Sandbox.create(name="one", labels={"a": "b"}, memory_mib=256) as sandbox:
        info = sandbox.info
        assert (info.name, info.state, info.labels, info.memory_mib) == ("one", "running", {"a": "b"}, 256)
        assert info.timings.first_answer_ms == 90.25
        assert [found.id for found in Sandbox.list()] == [sandbox.id]
        same = Sandbox.connect("one")
        assert same.id == sandbox.id
        same.close()
    assert Sandbox.list() == []
    assert [found.state for found in Sandbox.list(all=True)] == ["terminated"]
    assert sandbox.info.state_reason is not None


def test_what_is_killed_twice_leaves_no_connection(fake: FakeDaemon) -> None:
    with Sandbox.create() as sandbox:
        sandbox.kill()
        descriptors = len(os.listdir("/proc/self/fd"))
    wait_until(lambda: len(os.listdir("/proc/self/fd")) <= descriptors)  # the fake daemon is in this process, too


@pytest.mark.parametrize("wrong", ["..", "../../{other}", ".", "{own}?all=1", "x#"])
def test_an_id_reaches_nothing_else(fake: FakeDaemon, sandbox: Sandbox, wrong: str) -> None:
    """A context ``..`` is the sandbox itself, to a client that makes addresses of ids."""
    with Sandbox.create() as other:
        named = wrong.format(other=other.id, own="default")
        for act in (sandbox.contexts.remove, sandbox.contexts.restart, sandbox.join_code, sandbox.commands.remove):
            with pytest.raises(errors.InvalidSpec):
                act(named)
        assert {found.state for found in Sandbox.list()} == {"running"}


def test_an_attached_sandbox_ends_with_its_connection(fake: FakeDaemon) -> None:
    sandbox = Sandbox.create(attached=True)
    box = fake.boxes[sandbox.id]
    assert sandbox.commands.run(["true"]).ok
    assert not box.ended.is_set()
    sandbox.close()
    wait_until(box.ended.is_set)


def test_a_command_that_fails_is_a_result(sandbox: Sandbox) -> None:
    result = sandbox.commands.run("echo out; echo err >&2; exit 7")
    assert (result.end, result.stdout, result.stderr) == (Exited(7), "out\n", "err\n")
    assert (result.truncated_bytes, result.cpu_ms, result.peak_memory_mib) == (0, 1.5, None)
    assert sandbox.commands.run("kill -9 $$").end == Signaled(9)
    assert sandbox.commands.run(["sleep", "60"], timeout_s=0.3).end == TimedOut(0.3)
    with pytest.raises(CommandFailed, match=r"Exited\(code=7\): err") as caught:
        sandbox.commands.run("echo err >&2; exit 7", check=True)
    assert caught.value.result.stderr_bytes == b"err\n"


def test_a_list_is_not_given_to_a_shell(sandbox: Sandbox) -> None:
    assert sandbox.commands.run(["echo", "$HOME; x"]).stdout == "$HOME; x\n"
    with pytest.raises(errors.ExecRefused) as caught:
        sandbox.commands.run(["no-such-program"])
    assert caught.value.evidence == {"errno": "ENOENT"}


def test_input_goes_in_while_output_comes_out(sandbox: Sandbox) -> None:
    data = bytes(range(256)) * 8192
    result = sandbox.commands.run(["cat"], stdin=data)
    assert result.stdout_bytes == data
    assert sandbox.commands.run(["true"], stdin=data).ok
    assert sandbox.commands.run(["cat"]).stdout == ""


def test_of_much_output_the_ends_are_kept(sandbox: Sandbox) -> None:
    seen: list[bytes] = []
    result = sandbox.commands.run("seq 1 20000", max_output_bytes=1000, on_stdout=seen.append)
    whole = b"".join(f"{n}\n".encode() for n in range(1, 20001))
    assert b"".join(seen) == whole
    assert result.stdout_bytes == whole[:500] + whole[-500:]
    assert result.truncated_bytes == len(whole) - 1000


def test_a_started_command_can_be_fed_and_signaled(sandbox: Sandbox) -> None:
    with sandbox.commands.start(["cat"], stdin=True) as running:
        running.feed(b"one ", eof=False)
        output = running.output()
        assert next(output).data == b"one "
        running.feed(iter([b"two ", b"three"]))
        assert b"".join(piece.data for piece in output) == b"two three"
    assert running.end is not None
    assert running.end.end == Exited(0)
    with sandbox.commands.start(["sleep", "60"]) as running:
        running.signal("INT")
        assert running.wait().end == Signaled(2)


def test_leaving_a_command_kills_it(fake: FakeDaemon, sandbox: Sandbox) -> None:
    with sandbox.commands.start(["sleep", "60"]) as running:
        process = fake.boxes[sandbox.id].running[running.exec_id]
    wait_until(lambda: process.returncode is not None)


def test_files(sandbox: Sandbox) -> None:
    assert sandbox.files.write("sub/a.bin", b"\0\xff", mode=0o600) == 2
    assert sandbox.files.write("b.txt", iter([b"gr", b"\xc3\xbc\xc3\x9fe"])) == 7
    assert sandbox.files.read("sub/a.bin") == b"\0\xff"
    assert sandbox.files.read_text("b.txt") == "grüße"
    found = sandbox.files.stat("sub/a.bin")
    assert (found.type, found.size, found.mode) == ("file", 2, 0o600)
    assert [entry.name for entry in sandbox.files.list()] == ["b.txt", "sub"]
    sandbox.files.remove("b.txt")
    with pytest.raises(errors.FileRefused):
        sandbox.files.read("b.txt")


def test_code(sandbox: Sandbox) -> None:
    execution = sandbox.run_code("6 * 7")
    assert (execution.text, execution.error, execution.logs.stdout) == ("42", None, "said\n")
    failed = sandbox.run_code("1 / 0")
    assert failed.error is not None
    assert failed.error.name == "ZeroDivisionError"


def test_images(fake: FakeDaemon) -> None:
    news: list[tuple[str, str, float | None]] = []
    with Client() as client:
        images = Images(client)
        assert [image["name"] for image in images.list()] == ["python"]
        assert images.build("python", progress=lambda *step: news.append(step))["version"] == 1
        assert news == [("kernel", "unpacking", None), ("root", "installing", 0.5)]
        with pytest.raises(errors.NotFound, match="no recipe"):
            images.build("other")


def test_what_the_daemon_refuses_is_our_own_error(fake: FakeDaemon) -> None:
    with pytest.raises(errors.NotFound, match="there is no image 'x'") as caught:
        Sandbox.create("x")
    assert caught.value.hint == "casemate image ls"
    with pytest.raises(errors.NotFound):
        Sandbox.connect("nobody")


def test_where_nobody_listens(tmp_path: Path) -> None:
    with pytest.raises(errors.DaemonUnavailable, match="no daemon answers at unix:"):
        Sandbox.list(url=f"unix://{tmp_path}/none.sock")
    with pytest.raises(errors.InvalidSpec, match="CASEMATE_URL is 'ftp"):
        Sandbox.list(url="ftp://host")


def test_a_path_too_long_for_a_socket(fake: FakeDaemon, tmp_path: Path) -> None:
    folder = tmp_path / ("x" * 120)
    folder.mkdir()
    (folder / "daemon.sock").hardlink_to(tmp_path / "daemon.sock")
    assert Sandbox.list(url=f"unix://{folder}/daemon.sock") == []


def test_the_async_side(fake: FakeDaemon) -> None:
    async def use() -> None:
        async with await AsyncSandbox.create(attached=True) as sandbox:
            assert (await sandbox.commands.run(["cat"], stdin="in")).stdout == "in"
            assert (await sandbox.commands.run(["true"], stdin=b"x" * 2**20)).ok
            await sandbox.files.write("a", b"1")
            assert await sandbox.files.read("a") == b"1"
            assert (await sandbox.run_code("6 * 7")).text == "42"
            async with sandbox.commands.start(["sleep", "60"]) as running:
                await running.signal("TERM")
                assert (await running.wait()).end == Signaled(15)
            with pytest.raises(errors.ExecRefused):
                await sandbox.commands.run(["no-such-program"], stdin="in")
        assert await AsyncSandbox.list() == []
        async with AsyncClient() as client:
            assert (await AsyncImages(client).build("python"))["version"] == 1

    anyio.run(use)


def test_a_first_use_tells_its_progress(fake: FakeDaemon) -> None:
    told: list[tuple[str, str, float | None]] = []
    for attached in (False, True):
        with Sandbox.create(attached=attached, progress=lambda *news: told.append(news)) as sandbox:
            assert sandbox.info.state == "running"
    assert told == [("boot", "booting Linux", 0.1)] * 2
    with pytest.raises(errors.SnapshotMissing):
        Sandbox.create(memory_mib=256, build=False)


def test_images_go_out_and_come_in(fake: FakeDaemon) -> None:
    with Client() as client:
        images = Images(client)
        with images.export("python") as pieces:
            data = b"".join(pieces)
        assert data == fake.bundle
        assert images.import_(iter([data[:1000], data[1000:]]), name="mine") == {"name": "mine", "version": 2}
        with pytest.raises(errors.StateConflict):
            images.remove("python")
        assert images.remove("python", force=True)["size_bytes"] == 2**20
        assert images.prune(dry_run=True)["dry_run"] is True
        assert images.verify("python")["ok"] is True
