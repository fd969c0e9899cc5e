"""What a process wrote over its private copy of a file, written over another copy of that file: both are the same."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest
from tests.unit.host.test_mapping import PAGES, a_process

from casemate.errors import HostError, HostFull
from casemate.host.mapping import PAGE_BYTES
from casemate.images import copy_disk
from casemate.vmm import overlay as module
from casemate.vmm.overlay import overlay


@pytest.mark.parametrize("pages", ["[]", f"[3, 4, *range(100, 3000), {PAGES - 1}]", f"range({PAGES})"])
def test_the_file_is_the_memory(tmp_path: Path, pages: str) -> None:
    seen, wanted = list[object](), bytearray(PAGES * PAGE_BYTES)
    with a_process(tmp_path, pages) as memory:
        copy_disk(tmp_path / "memory", tmp_path / "copy")
        assert overlay(memory, tmp_path / "copy", lambda: seen.append(1)) == len(eval(f"[*{pages}]")) * PAGE_BYTES
        memory.read_into(0, memoryview(wanted))
    assert (tmp_path / "copy").read_bytes() == wanted
    assert (tmp_path / "memory").read_bytes() == b"\7" * (PAGES * PAGE_BYTES)
    assert len(seen) >= len(eval(f"[*{pages}]")) // 4096


def test_what_is_no_copy_is_not_written(tmp_path: Path) -> None:
    (tmp_path / "short").write_bytes(b"short")
    (tmp_path / "link").symlink_to(tmp_path / "short")
    with a_process(tmp_path, "[1]") as memory:
        for name in ("short", "link", "nowhere"):
            with pytest.raises(HostError):
                overlay(memory, tmp_path / name)
    assert (tmp_path / "short").read_bytes() == b"short"


def test_a_full_disk_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with a_process(tmp_path, "[1]") as memory:
        copy_disk(tmp_path / "memory", tmp_path / "copy")

        def full(*_: object) -> int:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        monkeypatch.setattr(module.os, "pwrite", full)
        with pytest.raises(HostFull):
            overlay(memory, tmp_path / "copy")


def test_it_can_be_given_up(tmp_path: Path) -> None:
    def stop() -> None:
        raise KeyboardInterrupt

    with a_process(tmp_path, f"range({PAGES})") as memory:
        copy_disk(tmp_path / "memory", tmp_path / "copy")
        with pytest.raises(KeyboardInterrupt):
            overlay(memory, tmp_path / "copy", stop)
