"""What a restore of ours costs, for ``casemate bench --vmm firecracker``: a program that answers with times.

    python -m casemate.vmm.firecracker.measure      as root, where KVM opens

It makes a snapshot of a guest that does nothing but count, writes one line of JSON on where that and the binaries are,
and then answers each line it reads, ``restore`` or ``memory``, with one of JSON: so that a sample of ours and one of
the floor (``bench/firecracker.py``), which is given the same files, alternate. It ends with its input.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import anyio
import anyio.to_thread

from casemate import config, errors
from casemate.host import open_launcher, start_launcher
from casemate.vmm.contract import Kernel, MachineSpec, SnapshotFiles
from casemate.vmm.firecracker.builds import Build, find_build
from casemate.vmm.firecracker.driver import FirecrackerDriver
from casemate.vmm.firecracker.machine import FirecrackerMachine
from casemate.vmm.firecracker.tiny import tiny_guest

MEMORY_MIB = 128
RUNS_S = 20.0  # an emulating KVM takes its time
LOOK_S = 0.0002
SPEC = MachineSpec("template", 1, MEMORY_MIB, ())


async def main(build: Build | None = None) -> None:
    """*build*: another than the one that is installed."""
    settings = config.load()
    with tempfile.TemporaryDirectory(prefix="casemate-measure-") as folder:
        place = Path(folder)
        mine = replace(settings, home=place)
        (place / "run").mkdir(mode=0o700)
        async with open_launcher(start_launcher(mine)) as launcher:
            found = build or find_build(settings.home / "vmm")
            driver = FirecrackerDriver(mine, launcher, found)
            snapshot = await _make_snapshot(driver, place)
            _say(
                {
                    "memory": str(snapshot.memory),
                    "state": str(snapshot.state),
                    "firecracker": str(found.firecracker),
                    "jailer": str(found.jailer),
                    "version": str(found.version),
                    "memory_mib": MEMORY_MIB,
                }
            )
            async for act in _asked():
                try:
                    _say(await _measured(driver, snapshot, act))
                except (errors.CasemateError, OSError) as error:
                    _say({"error": str(error)})


async def _make_snapshot(driver: FirecrackerDriver, place: Path) -> SnapshotFiles:
    files = SnapshotFiles(place / "memory", place / "state")
    (place / "guest").write_bytes(tiny_guest())
    (place / "initrd").write_bytes(bytes(4096))
    kernel = Kernel(place / "guest", place / "initrd", driver.kernel_arguments)
    async with driver.boot(SPEC, kernel, files.memory) as machine:
        await _runs(machine)
        await machine.pause()
        await machine.save_state(files.state)
    return files


async def _measured(driver: FirecrackerDriver, snapshot: SnapshotFiles, act: str) -> dict[str, Any]:
    began = time.perf_counter()
    async with driver.restore(replace(SPEC, guest_id=f"m{time.monotonic_ns()}"), snapshot) as machine:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(machine.unpause)  # which also asks for a stream, that this guest does not have
            await _runs(machine)
            runs = time.perf_counter()
            if act == "memory":
                return {"mib": await anyio.to_thread.run_sync(_own_mib, machine.pid, snapshot.memory)}
            tasks.cancel_scope.cancel()
        return {"ms": (runs - began) * 1e3, "started_ms": machine.spawn_ms}


async def _runs(machine: FirecrackerMachine) -> None:
    """Until its guest has said something."""
    with anyio.fail_after(RUNS_S):
        while not await machine.console():
            await anyio.sleep(LOOK_S)


def _own_mib(pid: int, memory: Path) -> float:
    """What the VMM has beside its guest's memory: pages that others have as well are counted in shares (PSS)."""
    own_kb, counts = 0, False
    for line in Path(f"/proc/{pid}/smaps").read_text().splitlines():
        words = line.split()
        if "-" in words[0]:
            counts = not (len(words) > 5 and words[5] == "/memory")
        elif words[0] == "Pss:" and counts:
            own_kb += int(words[1])
    return own_kb / 1024


async def _asked() -> AsyncIterator[str]:
    while line := await anyio.to_thread.run_sync(sys.stdin.readline, abandon_on_cancel=True):
        yield line.strip()


def _say(answer: dict[str, Any]) -> None:
    print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    try:
        anyio.run(main)
    except errors.CasemateError as error:
        _say({"error": str(error)})
        sys.exit(1)
