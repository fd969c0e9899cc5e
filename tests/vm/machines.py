"""Single clones by hand, below the daemon: for what only a driver's user can do to them."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import anyio
from anyio.abc import TaskGroup

from casemate.config import load
from casemate.host import open_launcher, start_launcher
from casemate.images import copy_disk
from casemate.sandbox import Introduction, Link, Snapshot, execs, introduce, new_id
from casemate.vmm import Machine
from casemate.vmm.qemu import QemuDriver

TEST_UIDS = 2_100_000_000  # another range than that of the daemons under test
ANSWER_S = 20.0


@dataclass
class Clone:
    """A machine that has been introduced, and the link to it."""

    machine: Machine
    link: Link
    tasks: TaskGroup
    _carrying: anyio.CancelScope

    async def run(self, *argv: str) -> tuple[bytes, execs.Ended]:
        """A program's output on stdout, and its end."""
        output = b""
        async with execs.start(self.link, execs.ExecSpec(argv)) as running:
            while isinstance(piece := await running.read(), execs.Output):
                output += piece.data if piece.stream == "stdout" else b""
        return output, piece

    async def lose_stream(self) -> None:
        """Close the stream under the link, and begin anew on a fresh one."""
        self._carrying.cancel()
        await self.link.ended.wait()
        stream = await self.machine.reopen_stream()
        self.link.begin(reopened=True)
        self._carrying = anyio.CancelScope()
        self.tasks.start_soon(_carry, self.link, stream, self._carrying)
        await introduce(self.link, Introduction("again", fresh=False), ANSWER_S)


async def _carry(link: Link, stream: object, scope: anyio.CancelScope) -> None:
    with scope:
        await link.run(stream)  # type: ignore[arg-type]


@asynccontextmanager
async def open_driver(home: Path) -> AsyncIterator[QemuDriver]:
    settings = replace(load(home=home), uid_base=TEST_UIDS)
    async with open_launcher(start_launcher(settings)) as launcher:
        yield QemuDriver(settings, launcher, "tcg")


def template_of(home: Path) -> Snapshot:
    """The home's one snapshot."""
    return Snapshot.read(next(path for path in (home / "snapshots").iterdir() if not path.name.startswith(".")))


@asynccontextmanager
async def open_clone(driver: QemuDriver, home: Path, folder: Path) -> AsyncIterator[Clone]:
    """A clone of the home's one snapshot; *folder* holds its disk."""
    snapshot = template_of(home)
    guest_id, disk = new_id(), folder / "disk"
    copy_disk(snapshot.disk, disk)
    async with AsyncExitStack() as held:
        machine = await held.enter_async_context(driver.restore(snapshot.machine(guest_id, disk), snapshot.files))
        tasks = await held.enter_async_context(anyio.create_task_group())
        held.callback(tasks.cancel_scope.cancel)
        link, scope = Link(guest_id, silence_s=ANSWER_S), anyio.CancelScope()
        tasks.start_soon(_carry, link, machine.stream, scope)
        await machine.unpause()
        await introduce(link, Introduction(guest_id), ANSWER_S)
        yield Clone(machine, link, tasks, scope)
