"""The fixtures of the tests that run the real Firecracker with guests of a few hundred bytes."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from tests.firecracker.binaries import KVM, find_binaries
from tests.firecracker.guests import compile_guests

from casemate.host import approve
from casemate.vmm.firecracker.builds import Build


@pytest.fixture(scope="session")
def firecracker() -> Build:
    """The real one; skips where it is not, or there is no KVM that we may use."""
    if isinstance(found := find_binaries(), str):
        pytest.skip(found)
    if not os.access(KVM, os.R_OK | os.W_OK):
        pytest.skip(f"{KVM} is not here or not ours to use, and Firecracker runs on nothing else")
    if os.geteuid() == 0:
        approve(found.jailer, found.jailer_sha256)
    return found


@pytest.fixture(scope="session")
def guests(firecracker: Build, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder with the guests' ELF files."""
    try:
        return compile_guests(tmp_path_factory.mktemp("guests"))
    except FileNotFoundError as error:
        pytest.skip(str(error))
