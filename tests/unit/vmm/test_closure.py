"""The copy of the VMM, made once however many ask for it at the same time."""

from __future__ import annotations

import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from casemate.vmm.qemu import closure


@pytest.mark.skipif(shutil.which(closure.NAME) is None, reason=f"no {closure.NAME} on this host")
def test_several_at_once_make_one_copy(tmp_path: Path) -> None:
    binary = Path(shutil.which(closure.NAME) or "")
    with ThreadPoolExecutor(4) as threads:
        made = list(threads.map(lambda _: closure._make(tmp_path, binary), range(4)))
    assert len({one.usr for one in made}) == 1
    assert [path.name for path in tmp_path.iterdir()] == [made[0].sha256]
    assert closure.find_kept(tmp_path, made[0].sha256) == made[0].usr
