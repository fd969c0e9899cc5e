"""The fake VMM keeps the contract that the real one keeps."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from pathlib import Path

import anyio
import pytest
from tests.conformance.check_vmm import CHECKS, Bench
from tests.fakes.fake_vmm import FakeDriver

from casemate.vmm import Drive, Driver, Kernel, MachineSpec, SnapshotFiles


@pytest.mark.parametrize("stream_survives", [True, False], ids=["", "breaking"])
@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
def test_contract(
    check: Callable[[Bench], Awaitable[None]], stream_survives: bool, tmp_path: Path, no_trace: None
) -> None:
    for name in ("memory", "state", "disk", "root", "vmlinux", "initrd"):
        (tmp_path / name).write_bytes(name.encode())
    folder = tmp_path / "clones"
    folder.mkdir()
    driver: Driver = FakeDriver(stream_survives=stream_survives)
    spec = MachineSpec("template", 1, 128, (Drive(tmp_path / "root"), Drive(tmp_path / "disk", writable=True)))
    kernel = Kernel(tmp_path / "vmlinux", tmp_path / "initrd", "quiet")
    bench = Bench(
        driver, kernel, SnapshotFiles(tmp_path / "memory", tmp_path / "state"), tmp_path / "disk", spec, folder
    )
    anyio.run(check, bench)
