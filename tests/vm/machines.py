"""Single machines by hand, below the daemon: for what only a driver's user can do to them."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import anyio
from anyio.abc import TaskGroup

from casemate.config import load
from casemate.host import open_launcher, start_launcher
from casemate.images import Workshop, copy_disk, make_scratch_disk
from casemate.sandbox import (
    Introduction,
    Link,
    Shape,
    Snapshot,
    cells,
    execs,
    introduce,
    kind_said,
    machine_spec,
    new_id,
    open_seal,
)
from casemate.vmm import Kernel, Machine
from casemate.vmm.qemu import QemuDriver

TEST_UIDS = 2_100_000_000  # another range than that of the daemons under test
ANSWER_S = 20.0
BOOT_S = 60.0


@dataclass(frozen=True)
class Ran:
    """A cell's end, and its last result as text."""

    end: cells.CellEnd
    text: str | None


@dataclass
class Clone:
    """A machine that has been introduced, and the link to it."""

    machine: Machine
    link: Link
    tasks: TaskGroup
    _carrying: anyio.CancelScope

    async def run(self, *argv: str, **more: Any) -> tuple[bytes, execs.Ended]:
        """A program's output on stdout, and its end; *more* as ExecSpec has it."""
        output = b""
        async with execs.start(self.link, execs.ExecSpec(argv, **more)) as running:
            while isinstance(piece := await running.read(), execs.Output):
                output += piece.data if piece.stream == "stdout" else b""
        return output, piece

    async def run_code(self, code: str) -> tuple[bytes, Ran]:
        """A cell's output on stdout, and its end."""
        output, text = b"", None
        async with cells.run(self.link, code, cells.RunCell()) as running:
            while not isinstance(item := await running.read(), cells.CellEnded):
                if isinstance(item, execs.Output) and item.stream == "stdout":
                    output += item.data
                elif isinstance(item, cells.Result):
                    text = json.loads(item.body)["data"].get("text/plain", text)
        return output, Ran(item.end, text)

    async def lose_stream(self, introduction: Introduction | None = None) -> None:
        """Close the stream under the link, and begin anew on a fresh one, with *introduction* or as who it was."""
        self._carrying.cancel()
        await self.link.ended.wait()
        stream = await self.machine.reopen_stream()
        self.link.begin(reopened=True)
        self._carrying = anyio.CancelScope()
        self.tasks.start_soon(_carry, self.link, stream, self._carrying)
        await introduce(self.link, introduction or Introduction("again", fresh=False), ANSWER_S)


async def _carry(link: Link, stream: object, scope: anyio.CancelScope) -> None:
    with scope:
        await link.run(stream)  # type: ignore[arg-type]


@asynccontextmanager
async def open_driver(home: Path) -> AsyncIterator[QemuDriver]:
    settings = replace(load(home=home), uid_base=TEST_UIDS)
    async with open_launcher(start_launcher(settings)) as launcher:
        yield QemuDriver(settings, launcher, "tcg")


def template_of(home: Path) -> Snapshot:
    """The snapshot of the built-in image in the default shape: others' tests may have put some more beside it."""
    settings, seal = load(home=home), open_seal(home)
    shape = Shape(settings.vcpus, settings.memory_mib, settings.disk_mib)
    places = [path for path in (home / "snapshots").iterdir() if not path.name.startswith(".")]
    images = [Snapshot.read(path, seal, tenant="system") for path in places if kind_said(path) == "image"]
    found = [image for image in images if image.image.partition("@")[0] == "python" and image.shape == shape]
    assert len(found) == 1, f"not one snapshot of 'python' in {shape}: {[(s.id, s.image, s.shape) for s in images]}"
    return found[0]


@asynccontextmanager
async def open_clone(
    driver: QemuDriver, home: Path, folder: Path, *, entropy: bytes | None = None
) -> AsyncIterator[Clone]:
    """A clone of the home's template; *folder* holds its disk. *entropy*: not fresh, as no clone should have it."""
    snapshot = template_of(home)
    guest_id, disk = new_id(), folder / "disk"
    copy_disk(snapshot.disk, disk)
    async with driver.restore(snapshot.machine(guest_id, disk), snapshot.files) as machine:
        await machine.unpause()
        async with introduced(machine, guest_id, ANSWER_S, entropy) as clone:
            yield clone


@asynccontextmanager
async def open_booted(driver: QemuDriver, home: Path, folder: Path) -> AsyncIterator[Clone]:
    """A machine of the home's artifacts that has booted; *folder* holds its memory and its disk."""
    shape, parts = template_of(home).shape, Workshop(home).prepare("python")
    guest_id, disk = new_id(), folder / "disk"
    make_scratch_disk(disk, shape.disk_mib)
    await driver.platform()
    spec = machine_spec(guest_id, shape, parts.root, parts.agent, disk)
    kernel = Kernel(parts.kernel, parts.initrd, driver.kernel_arguments)
    async with (
        driver.boot(spec, kernel, folder / "memory") as machine,
        introduced(machine, guest_id, BOOT_S) as booted,
    ):
        yield booted


@asynccontextmanager
async def introduced(
    machine: Machine, guest_id: str, timeout_s: float, entropy: bytes | None = None
) -> AsyncIterator[Clone]:
    introduction = Introduction(guest_id)
    if entropy is not None:
        introduction = replace(introduction, entropy=entropy)
    async with anyio.create_task_group() as tasks:
        link, scope = Link(guest_id, silence_s=timeout_s), anyio.CancelScope()
        tasks.start_soon(_carry, link, machine.stream, scope)
        await introduce(link, introduction, timeout_s)
        yield Clone(machine, link, tasks, scope)
        tasks.cancel_scope.cancel()
