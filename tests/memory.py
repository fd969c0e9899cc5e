"""A ``tmp_path`` in memory, for tests of code that syncs what it writes: half their time they waited for the disk.

That it is synced is proved by the order of the calls; a disk proves it no better. Where there is no room in memory, it
is on the disk as everybody's.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

SHARED = Path("/dev/shm")
LEAST_BYTES = 256 << 20


@contextmanager
def quick_folder(prefix: str) -> Iterator[Path]:
    """Gone at the end. Its path is short: a socket's has 108 bytes."""
    in_memory = SHARED.is_dir() and shutil.disk_usage(SHARED).free > LEAST_BYTES
    folder = Path(tempfile.mkdtemp(prefix=prefix, dir=SHARED if in_memory else None))
    try:
        yield folder
    finally:
        shutil.rmtree(folder)


@pytest.fixture
def tmp_path() -> Iterator[Path]:
    with quick_folder("quick-") as folder:
        yield folder
