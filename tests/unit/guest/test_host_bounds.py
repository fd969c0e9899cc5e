"""Whatever a context makes the agent say, the host takes it: what it would refuse costs the machine."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from cell_guest import CellGuest
from test_hostile_contexts import lie

from casemate.guest.folder_watch import FolderWatch
from casemate.sandbox.cell_ends import LeftOut, ended
from casemate.sandbox.contexts import ContextInfo


@pytest.fixture
def deep(tmp_path: Path) -> Iterator[Path]:
    """A folder whose path is nearly as long as the kernel takes one."""
    home = os.getcwd()
    path = str(tmp_path)
    while len(path) < 4000:
        path += "/" + "d" * min(250, 4090 - len(path) - 1)
    os.makedirs(path)
    os.chdir(path)
    yield Path(path)
    os.chdir(home)


def test_results_of_impossible_sizes_are_counted_within_bounds(guest: CellGuest) -> None:
    code = (
        "memory = os.memfd_create('x'); os.ftruncate(memory, 1 << 62)\n"
        "for _ in range(4): say({'event': 'result', 'id': N, 'size': 1 << 62}, memory)\n"
    )
    seen = lie(guest, code)
    assert seen.end is not None
    assert ended(seen.end, LeftOut(0, 0)).left_out.results == 4


def test_a_file_with_a_longer_path_than_the_host_takes_is_one_more(deep: Path) -> None:
    watch = FolderWatch(str(deep))
    for name in ("e" * 250, "short"):
        with open(name, "w"):
            pass
    changes, cut = watch.changes()
    watch.close()
    assert [change["path"] for change in changes] == [f"{deep}/short"]
    assert cut == 1


def test_a_version_of_any_length_is_cut(guest: CellGuest) -> None:
    guest.act("context", op="create", context_id="talker")
    context = guest.contexts.find("talker")
    context._was_ready = False
    context.on_message({"event": "ready", "about": {"version": "9" * 5000}}, [])
    assert len(ContextInfo.from_agent(context.info()).version or "") <= 256
    guest.act("context", op="remove", context_id="talker")


def test_many_contexts_in_a_deep_folder_are_listed(guest: CellGuest, tmp_path: Path) -> None:
    folder = tmp_path
    while len(str(folder)) < 1200:
        folder /= "\N{HIRAGANA LETTER A}" * 80
    folder.mkdir(parents=True)
    for number in range(12):
        made = guest.act("context", op="create", context_id=f"deep{number}", cwd=str(folder))
        assert made.accepted is not None
    listed = guest.act("context", op="list")
    for number in range(12):
        guest.act("context", op="remove", context_id=f"deep{number}")
    assert listed.accepted is not None
    assert listed.reset is None
    assert len(listed.accepted["contexts"]) >= 12
