"""Two homes: one whose daemons come and go, and one whose one daemon serves ill-treated guests (``world.py``)."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.faults.world import bystander, daemon, guests_home, sandbox
from tests.vm.vm_world import built, home_like

__all__ = ["bystander", "built", "daemon", "guests_home", "home", "sandbox"]


@pytest.fixture(scope="session")
def home(built: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return home_like(built, tmp_path_factory.mktemp("faults"))
