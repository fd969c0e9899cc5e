"""Files as the agent touches them: whole or not at all, and never through what is no file."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from casemate.guest import files


def write(path: Path, data: bytes, mode: int | None = None) -> None:
    replacement = files.Replacement(str(path), mode, make_parents=True)
    replacement.write(data)
    replacement.commit()


def test_nobody_sees_a_file_before_it_is_whole(tmp_path: Path) -> None:
    path = tmp_path / "deep/er/file"
    replacement = files.Replacement(str(path), None, make_parents=True)
    replacement.write(b"half")
    assert not path.exists()
    replacement.commit()
    assert path.read_bytes() == b"half"
    assert path.stat().st_mode & 0o777 == 0o644
    assert [p.name for p in path.parent.iterdir()] == ["file"]


def test_given_up_it_leaves_what_was_there(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"old")
    replacement = files.Replacement(str(path), None, make_parents=False)
    replacement.write(b"new")
    replacement.give_up()
    assert path.read_bytes() == b"old"
    assert len(list(tmp_path.iterdir())) == 1


def test_a_replacement_keeps_the_mode_unless_told(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"")
    path.chmod(0o750)
    write(path, b"1")
    assert path.stat().st_mode & 0o777 == 0o750
    write(path, b"2", mode=0o600)
    assert path.stat().st_mode & 0o777 == 0o600


def test_a_link_is_replaced_and_not_followed(tmp_path: Path) -> None:
    (tmp_path / "target").write_bytes(b"kept")
    (tmp_path / "link").symlink_to("target")
    write(tmp_path / "link", b"new")
    assert (tmp_path / "target").read_bytes() == b"kept"
    assert not (tmp_path / "link").is_symlink()


def test_what_is_no_file_is_not_opened(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for path, number in ((tmp_path / "pipe", errno.EINVAL), (tmp_path, errno.EISDIR)):
        with pytest.raises(OSError, match=os.strerror(number)):
            files.open_to_read(str(path))
    with pytest.raises(OSError, match=os.strerror(errno.EISDIR)):
        files.Replacement(str(tmp_path), None, make_parents=False)


def test_removing_a_link_leaves_what_it_points_to(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder/file").write_bytes(b"")
    (tmp_path / "link").symlink_to("folder")
    files.remove(str(tmp_path / "link"), recursive=True)
    assert (tmp_path / "folder/file").exists()
    with pytest.raises(OSError, match=os.strerror(errno.ENOTEMPTY)):
        files.remove(str(tmp_path / "folder"), recursive=False)


def test_a_long_listing_comes_in_parts_that_fit_a_message(tmp_path: Path) -> None:
    names = {f"{'ü' * 60}{number}" for number in range(1500)}
    for name in names:
        (tmp_path / name).touch()
    listing, found, parts = files.entries(str(tmp_path)), set(), 0
    while part := files.some(listing):
        assert len(str(part)) < 61_440
        found |= {entry["name"] for entry in part}
        parts += 1
    assert found == names
    assert parts > 1
