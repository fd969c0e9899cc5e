"""Harm to the real Firecracker at each step of a boot and of a restore: told as what it is, and nothing is left."""

from __future__ import annotations

import os
import signal
import struct
import subprocess
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import anyio
import pytest
from tests.firecracker.driving import Ground, Opened, drive, memory_of
from tests.firecracker.guests import Word
from tests.traces import children_of

from casemate import errors
from casemate.vmm import SnapshotFiles
from casemate.vmm.firecracker import driver
from casemate.vmm.firecracker.api import Api
from casemate.vmm.firecracker.builds import Build
from casemate.vmm.firecracker.calls import Call

pytestmark = pytest.mark.usefixtures("no_trace")
Drive = Callable[[Callable[[Ground], Awaitable[None]]], None]
ENDS_S = 20.0
MAX_CALLS = 40
VERSION_AT = 16  # in a state file: after 8 bytes of magic and 8 of the version's length


@pytest.fixture
def driven(firecracker: Build, guests: Path, tmp_path: Path) -> Drive:
    return partial(drive, firecracker, guests, tmp_path)


def running_vmms() -> list[int]:
    """Those of this process."""
    found = []
    for pid in children_of(os.getpid()):
        with suppress(FileNotFoundError):  # it has just ended
            if Path(f"/proc/{pid}/comm").read_text() == "firecracker\n":
                found.append(pid)
    return found


def kill_the_vmm() -> None:
    for pid in running_vmms():
        os.kill(pid, signal.SIGKILL)


@dataclass
class Harm:
    """Comes to the call *at*, counted from 0, of all that are made."""

    at: int
    do: Callable[[Call], Call]
    made: int = 0

    @property
    def done(self) -> bool:
        return self.made > self.at

    def __call__(self, call: Call) -> Call:
        self.made += 1
        return self.do(call) if self.made == self.at + 1 else call


@contextmanager
def harmed(harm: Harm) -> Iterator[None]:
    made = Api.do

    async def do(api: Api, call: Call, *more: Any, **named: Any) -> Any:
        return await made(api, harm(call), *more, **named)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Api, "do", do)
        yield


def killed(call: Call) -> Call:
    kill_the_vmm()
    return call


def garbled(call: Call) -> Call:
    """What it does not take: it knows no such field, and no body where there is one."""
    return replace(call, body={"no_such_field": 1})


async def use(opened: Opened, into: Path) -> None:
    async with opened as machine:
        await machine.pause()
        await machine.save_state(into)
        await machine.unpause()


async def error_of(used: Awaitable[None], expected: type[errors.CasemateError]) -> errors.CasemateError | None:
    with anyio.fail_after(ENDS_S):
        try:
            await used
        except expected as error:
            return error
    return None


@pytest.mark.slow
@pytest.mark.parametrize("life", ["boot", "restore"])
@pytest.mark.parametrize(
    ("do", "told"), [(killed, errors.VmmExited), (garbled, errors.VmmRefused)], ids=["killed", "refused"]
)
def test_at_each_call(life: str, do: Callable[[Call], Call], told: type[errors.CasemateError], driven: Drive) -> None:
    """Whatever call it is, the next of them says so, with the call's name; and the driver makes the next machine."""

    async def body(ground: Ground) -> None:
        files = await ground.save()
        for at in range(MAX_CALLS):
            harm, folder = Harm(at, do), ground.folder / str(at)
            folder.mkdir()
            opened = ground.boot("counter", f"{at}/memory") if life == "boot" else ground.restore(files)
            with harmed(harm):
                error = await error_of(use(opened, folder / "state"), told)
            if error is None:
                break
            assert error.evidence["call"]
            assert error.evidence["argv"]
        assert not harm.done
        assert harm.made == at > (8 if life == "boot" else 3)
        async with ground.restore(files) as machine:
            await machine.unpause()
            assert (await memory_of(machine)).runs()

    driven(body)


@pytest.mark.slow
@pytest.mark.parametrize("life", ["boot", "restore"])
def test_cancelled_at_each_call(life: str, driven: Drive) -> None:
    async def body(ground: Ground) -> None:
        files = await ground.save()
        for at in range(MAX_CALLS):
            folder, scope = ground.folder / str(at), anyio.CancelScope(deadline=anyio.current_time() + ENDS_S)
            folder.mkdir()

            def cancelled(call: Call, scope: anyio.CancelScope = scope) -> Call:
                scope.cancel()
                return call

            harm = Harm(at, cancelled)
            opened = ground.boot("counter", f"{at}/memory") if life == "boot" else ground.restore(files)
            with harmed(harm), scope:
                await use(opened, folder / "state")
            assert not running_vmms()
            assert not list(ground.exchanges.iterdir())
            if not scope.cancelled_caught:
                break
        assert harm.made == at > (8 if life == "boot" else 3)

    driven(body)


def test_its_socket_never_appears(driven: Drive, monkeypatch: pytest.MonkeyPatch) -> None:
    async def body(ground: Ground) -> None:
        monkeypatch.setattr(driver, "API", "elsewhere.sock")
        monkeypatch.setattr(driver, "API_S", 0.5)
        with pytest.raises(errors.VmmRefused, match="no API") as caught:
            await use(ground.boot("counter"), ground.folder / "state")
        assert caught.value.evidence["argv"]

    driven(body)


def test_it_ends_before_its_socket_appears(driven: Drive, monkeypatch: pytest.MonkeyPatch) -> None:
    async def body(ground: Ground) -> None:
        monkeypatch.setattr(driver, "API", "elsewhere.sock")
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(kill_it_soon)
            with pytest.raises(errors.VmmExited) as caught:
                await use(ground.boot("counter"), ground.folder / "state")
        assert "signal=9" in caught.value.evidence["exit"]

    async def kill_it_soon() -> None:
        while not running_vmms():
            await anyio.sleep(0.01)
        kill_the_vmm()

    driven(body)


def crc64(content: bytes) -> int:
    """As a state file ends with it: the one by Jones, reflected. Source: Firecracker's docs on snapshot versions."""
    table = []
    for value in range(256):
        for _ in range(8):
            value = value >> 1 ^ (0x95AC9329AC4BC9B5 if value & 1 else 0)
        table.append(value)
    total = 0
    for byte in content:
        total = table[(total ^ byte) & 0xFF] ^ total >> 8
    return total


def of_another_version(state: bytes) -> bytes:
    (length,) = struct.unpack_from("<Q", state, VERSION_AT - 8)
    assert state[VERSION_AT : VERSION_AT + length].count(b".") == 2
    changed = state[:VERSION_AT] + b"9" + state[VERSION_AT + 1 : -8]
    return changed + struct.pack("<Q", crc64(changed))


BROKEN: dict[str, tuple[Callable[[bytes], bytes], str]] = {
    "empty": (lambda state: b"", "smaller than CRC"),
    "truncated": (lambda state: state[: len(state) // 2], "CRC64"),
    "flipped": (lambda state: state[:5000] + bytes([state[5000] ^ 1]) + state[5001:], "CRC64"),
    "of another version": (of_another_version, "version"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_state_that_is_broken(name: str, driven: Drive) -> None:
    change, said = BROKEN[name]

    async def body(ground: Ground) -> None:
        files = await ground.save()
        broken = ground.folder / "broken"
        broken.write_bytes(change(files.state.read_bytes()))
        with pytest.raises(errors.VmmError) as caught:
            await use(ground.restore(SnapshotFiles(files.memory, broken)), ground.folder / "again")
        assert said in str(caught.value.evidence)

    driven(body)


def test_the_checksum_is_the_files(driven: Drive) -> None:
    async def body(ground: Ground) -> None:
        state = (await ground.save()).state.read_bytes()
        assert struct.unpack("<Q", state[-8:]) == (crc64(state[:-8]),)

    driven(body)


def test_a_memory_that_is_too_short(driven: Drive) -> None:
    async def body(ground: Ground) -> None:
        files = await ground.save()
        short = ground.folder / "short"
        short.touch()
        os.truncate(short, 64 << 20)
        with pytest.raises(errors.VmmError) as caught:
            await use(ground.restore(SnapshotFiles(short, files.state)), ground.folder / "again")
        assert "file length" in str(caught.value.evidence)

    driven(body)


@contextmanager
def small_disk(place: Path, size_mib: int) -> Iterator[Path]:
    place.mkdir(parents=True, exist_ok=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size_mib}m,mode=755", "casemate-test", place], check=True)
    try:
        yield place
    finally:
        subprocess.run(["umount", place], check=True)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can mount a small disk")
def test_no_room_for_the_memory_of_a_booted_machine(driven: Drive) -> None:
    """It is paused still, and goes on."""

    async def body(ground: Ground) -> None:
        with small_disk(ground.folder / "small", 16):
            async with ground.boot("counter", "small/memory") as machine:
                memory = await memory_of(machine)
                await machine.pause()
                with pytest.raises(errors.HostFull):
                    await machine.save_state(ground.folder / "state")
                assert not (ground.folder / "state").exists()
                assert memory.stands_still()
                await machine.unpause()
                assert memory.runs()

    driven(body)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can mount a small disk")
def test_no_room_for_the_state_of_a_clone(driven: Drive) -> None:
    async def body(ground: Ground) -> None:
        files = await ground.save()
        with small_disk(ground.exchanges, 1) as small:
            async with ground.restore(files) as machine:
                await machine.unpause()
                memory = await memory_of(machine)
                memory.obey(Word.TOUCH, 10)
                await machine.pause()
                fill(small / "filling")
                with pytest.raises(errors.HostFull):
                    await machine.save_state(ground.folder / "again")
                (small / "filling").unlink()
                await machine.save_state(ground.folder / "again")
                await machine.unpause()
                assert memory.runs()

    driven(body)


def fill(path: Path) -> None:
    with path.open("wb", buffering=0) as file:
        try:
            while True:
                file.write(bytes(4096))
        except OSError:
            return


def test_what_a_killed_daemon_left_is_no_hindrance(driven: Drive) -> None:
    async def body(ground: Ground) -> None:
        left = ground.exchanges / "tiny0"
        (left / "stream.sock").mkdir(parents=True)
        (left / "api.sock").write_bytes(b"")
        async with ground.boot("counter") as machine:
            assert (await memory_of(machine)).runs()
        assert not left.exists()

    driven(body)
