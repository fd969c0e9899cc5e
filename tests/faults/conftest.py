"""Two homes: one whose daemons come and go, and one whose one daemon serves ill-treated guests (``world.py``)."""

from __future__ import annotations

from pathlib import Path

import pytest
from fault_world import SEED, SOAK, daemon_on
from tests.faults.world import bystander, daemon, guests_home, sandbox
from tests.vm.vm_world import Daemon, build_image, new_home

__all__ = ["bystander", "daemon", "guests_home", "home", "sandbox"]


def pytest_report_header() -> str:
    return f"faults: CASEMATE_SEED={SEED}, {'all of each sweep' if SOAK else 'a sample of each sweep'}"


@pytest.fixture(scope="session")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    home = new_home(tmp_path_factory.mktemp("faults"))
    with daemon_on(home) as running:
        build_image(Daemon(home, running.process.pid))
    return home
