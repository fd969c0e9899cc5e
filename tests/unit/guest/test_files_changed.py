"""Which files a cell has changed."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from cell_guest import CellGuest

from casemate.guest import folder_watch
from casemate.guest.folder_watch import FolderWatch


@pytest.fixture
def watch(tmp_path: Path) -> Iterator[FolderWatch]:
    (tmp_path / "old").write_text("old")
    (tmp_path / "below" / "deeper").mkdir(parents=True)
    (tmp_path / "below" / "deeper" / "old").write_text("old")
    (tmp_path / ".git").mkdir()
    watch = FolderWatch(str(tmp_path))
    yield watch
    watch.close()


def changed(watch: FolderWatch, folder: Path) -> dict[str, str]:
    changes, cut = watch.changes()
    assert cut == 0
    return {os.path.relpath(change["path"], folder): change["change"] for change in changes}


def test_nothing_has_changed(watch: FolderWatch, tmp_path: Path) -> None:
    (tmp_path / "old").read_text()
    assert not watch.has_news()
    assert changed(watch, tmp_path) == {}


def test_what_has(watch: FolderWatch, tmp_path: Path) -> None:
    (tmp_path / "new").write_text("new")
    (tmp_path / "new").write_text("newer")
    (tmp_path / "old").write_text("newer")
    (tmp_path / "below" / "deeper" / "old").unlink()
    (tmp_path / "brief").write_text("x")
    (tmp_path / "brief").unlink()
    (tmp_path / ".git" / "index").write_text("x")
    assert watch.has_news()
    assert changed(watch, tmp_path) == {"new": "created", "old": "modified", "below/deeper/old": "deleted"}
    assert changed(watch, tmp_path) == {}


def test_a_file_written_anew_is_modified(watch: FolderWatch, tmp_path: Path) -> None:
    (tmp_path / "old").unlink()
    (tmp_path / "old").write_text("again")
    assert changed(watch, tmp_path) == {"old": "modified"}


def test_new_folders_are_looked_into(watch: FolderWatch, tmp_path: Path) -> None:
    (tmp_path / "a" / "b").mkdir(parents=True)
    (tmp_path / "a" / "b" / "new").write_text("x")
    assert changed(watch, tmp_path) == {"a/b/new": "created"}
    (tmp_path / "a" / "b" / "new").write_text("y")
    assert changed(watch, tmp_path) == {"a/b/new": "modified"}


def test_moved_folders_are_followed(watch: FolderWatch, tmp_path: Path) -> None:
    (tmp_path / "below").rename(tmp_path / "moved")
    assert changed(watch, tmp_path) == {"moved/deeper/old": "created"}
    (tmp_path / "moved" / "deeper" / "old").write_text("x")
    assert changed(watch, tmp_path) == {"moved/deeper/old": "modified"}


def test_more_than_can_be_told_is_counted(watch: FolderWatch, tmp_path: Path) -> None:
    for n in range(300):
        (tmp_path / f"{n}").touch()
    changes, cut = watch.changes()
    assert 50 < len(changes) <= folder_watch.LISTED_AT_MOST
    assert len(changes) + cut == 300
    for n in range(50):
        (tmp_path / f"{n}-{'x' * 240}").touch()
    changes, cut = watch.changes()
    assert 0 < len(changes) < 50
    assert len(changes) + cut == 50


def test_far_more_is_only_told_to_be_more(watch: FolderWatch, tmp_path: Path) -> None:
    for n in range(folder_watch.EVENTS_AT_MOST + 10):
        (tmp_path / f"{n}").touch()
    changes, cut = watch.changes()
    assert changes
    assert cut == folder_watch.UNKNOWN
    assert watch.changes() == ([], 0)
    (tmp_path / "later").touch()
    assert changed(watch, tmp_path) == {"later": "created"}


def test_a_name_that_is_no_text(watch: FolderWatch, tmp_path: Path) -> None:
    (Path(os.fsdecode(os.fsencode(tmp_path) + b"/\xff"))).touch()
    assert changed(watch, tmp_path) == {"\ufffd": "created"}


def test_a_folder_that_is_not_there_is_unknown(tmp_path: Path) -> None:
    watch = FolderWatch(str(tmp_path / "missing"))
    assert watch.changes() == ([], folder_watch.UNKNOWN)


def test_folders_are_bounded(tmp_path: Path) -> None:
    for n in range(folder_watch.FOLDERS_AT_MOST + 20):
        (tmp_path / f"{n}").mkdir()
    watch = FolderWatch(str(tmp_path))
    assert len(watch._paths) == folder_watch.FOLDERS_AT_MOST
    watch.close()


def test_a_cell_tells_its_own(guest: CellGuest, tmp_path: Path) -> None:
    guest.act("context", op="create", context_id="in-folder", cwd=str(tmp_path))
    seen = guest.run("open('mine', 'w').write('x'); None", context="in-folder")
    assert seen.end is not None
    assert seen.end["files_changed"] == [{"path": f"{tmp_path}/mine", "change": "created"}]
    assert seen.end["files_cut"] == 0
    (tmp_path / "others").touch()
    seen = guest.run("1", context="in-folder")
    assert seen.end is not None
    assert seen.end["files_changed"] == []
    guest.act("context", op="remove", context_id="in-folder")
