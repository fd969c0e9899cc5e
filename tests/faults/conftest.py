"""One home of their own for all tests of faults, whose daemons come and go. Its snapshot is built once."""

from __future__ import annotations

from pathlib import Path

import pytest
from fault_world import SEED, SOAK, daemon_on
from tests.vm.vm_world import Daemon, build_image, new_home


def pytest_report_header() -> str:
    return f"faults: CASEMATE_SEED={SEED}, {'all of each sweep' if SOAK else 'a sample of each sweep'}"


@pytest.fixture(scope="session")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    home = new_home(tmp_path_factory.mktemp("faults"))
    with daemon_on(home) as running:
        build_image(Daemon(home, running.process.pid))
    return home
