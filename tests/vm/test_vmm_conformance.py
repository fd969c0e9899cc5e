"""The QEMU driver keeps the contract."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from pathlib import Path

import anyio
import pytest
from machines import open_driver, template_of
from tests.conformance.check_vmm import CHECKS, Bench
from vm_world import Daemon

from casemate.images import Workshop
from casemate.vmm import Kernel


@pytest.mark.vm
@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
def test_contract(check: Callable[[Bench], Awaitable[None]], daemon: Daemon, tmp_path: Path, no_trace: None) -> None:
    parts = Workshop(daemon.home).prepare("python")
    template = template_of(daemon.home)

    async def run() -> None:
        async with open_driver(daemon.home) as driver:
            await driver.platform()
            kernel = Kernel(parts.kernel, parts.initrd, driver.kernel_arguments)
            spec = template.machine("template", template.disk)
            await check(Bench(driver, kernel, template.files, template.disk, spec, tmp_path))

    anyio.run(run)
