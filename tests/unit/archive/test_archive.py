"""tar both ways: what one end packs the other unpacks, and what a hostile end sends stays in the folder."""

from __future__ import annotations

import io
import os
import socket
import stat
import tarfile
from collections.abc import Iterable
from contextlib import nullcontext, suppress
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from casemate.archive import Reader, Unpacked, Unpacker, beneath, pack
from casemate.archive.headers import Member, written
from casemate.errors import ArchiveRefused


def unpack(into: Path, data: bytes, *, piece: int = 1 << 20, **settings: object) -> Unpacked:
    into.mkdir(exist_ok=True)
    unpacker = Unpacker(os.open(into, os.O_RDONLY | os.O_DIRECTORY), **settings)  # type: ignore[arg-type]
    try:
        for at in range(0, len(data), piece):
            unpacker.feed(data[at : at + piece])
        return unpacker.finish()
    finally:
        unpacker.close()


def told(folder: Path) -> dict[str, tuple[str, int, object]]:
    """Each path below *folder* with its kind, mode and content."""
    found: dict[str, tuple[str, int, object]] = {}
    for path in sorted(folder.rglob("*")):
        status = path.lstat()
        mode = stat.S_IMODE(status.st_mode)
        name = str(path.relative_to(folder))
        if path.is_symlink():
            found[name] = ("link", 0, os.readlink(path))
        elif path.is_dir():
            found[name] = ("dir", mode, None)
        else:
            found[name] = ("file", mode, path.read_bytes())
    return found


def tar(*members: tuple[str, bytes, dict[str, object]], form: int = tarfile.PAX_FORMAT) -> bytes:
    """An archive as Python's own library writes it: (name, content, fields of the header)."""
    held = io.BytesIO()
    with tarfile.open(fileobj=held, mode="w", format=form) as archive:
        for name, content, fields in members:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            for field, value in fields.items():
                setattr(info, field, value)
            archive.addfile(info, io.BytesIO(content))
    return held.getvalue()


@pytest.fixture
def full(tmp_path: Path) -> Path:
    folder = tmp_path / "full"
    (folder / "sub" / "deep").mkdir(parents=True)
    (folder / "empty").mkdir(mode=0o750)
    (folder / "script").write_bytes(b"#!/bin/sh\n")
    (folder / "script").chmod(0o755)
    (folder / "sub" / "secret").write_bytes(os.urandom(100_000))
    (folder / "sub" / "secret").chmod(0o600)
    (folder / "sub" / "none").touch()
    (folder / "sub" / "deep" / ("x" * 200)).write_bytes(b"long name")
    (folder / "ünï\n").write_bytes(b"odd name")
    (folder / os.fsdecode(b"\xff\xfe")).write_bytes(b"no text")
    (folder / "link").symlink_to("sub/secret")
    (folder / "sub" / "up").symlink_to("../script")
    return folder


@pytest.mark.parametrize("piece", [1, 511, 512, 513, 70_000, 1 << 20])
def test_a_folder_comes_out_as_it_went_in(full: Path, tmp_path: Path, piece: int) -> None:
    done = unpack(tmp_path / "out", b"".join(pack(str(full))), piece=piece)
    assert told(tmp_path / "out") == told(full)
    assert not done.left_out
    assert (tmp_path / "out/script").stat().st_mtime_ns // 10**9 == (full / "script").stat().st_mtime_ns // 10**9


def test_what_is_packed_is_tar(full: Path, tmp_path: Path) -> None:
    with tarfile.open(fileobj=io.BytesIO(b"".join(pack(str(full))))) as archive:
        archive.extractall(tmp_path / "out", filter="tar")
    assert told(tmp_path / "out") == told(full)


@pytest.mark.parametrize("form", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_what_others_make_is_read(full: Path, tmp_path: Path, form: int) -> None:
    if form == tarfile.USTAR_FORMAT:
        (full / "sub" / "deep" / ("x" * 200)).unlink()
    held = io.BytesIO()
    with tarfile.open(fileobj=held, mode="w", format=form) as archive:
        archive.add(full, arcname=".")
    unpack(tmp_path / "out", held.getvalue(), piece=1000)
    assert told(tmp_path / "out") == told(full)


def test_folders_nobody_may_write_are_filled_first(tmp_path: Path) -> None:
    data = tar(("d", b"", {"type": tarfile.DIRTYPE, "mode": 0o555}), ("d/f", b"x", {"mode": 0o444}))
    unpack(tmp_path / "out", data)
    assert told(tmp_path / "out") == {"d": ("dir", 0o555, None), "d/f": ("file", 0o444, b"x")}
    (tmp_path / "out/d").chmod(0o755)


def test_set_user_id_does_not_come_along(tmp_path: Path) -> None:
    unpack(tmp_path / "out", tar(("f", b"x", {"mode": 0o6755})))
    assert told(tmp_path / "out")["f"][1] == 0o755


def test_what_is_no_file_is_left_out(full: Path, tmp_path: Path) -> None:
    before = told(full)
    os.mkfifo(full / "pipe")
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind(str(full / "sock"))
        unpack(tmp_path / "out", b"".join(pack(str(full))))
    assert told(tmp_path / "out") == before


def test_a_file_that_shrinks_or_grows_keeps_its_place(tmp_path: Path) -> None:
    folder = tmp_path / "full"
    folder.mkdir()
    for name in ("a", "b", "c"):
        (folder / name).write_bytes(b"x" * 200_000)
    packed, data = pack(str(folder)), bytearray()
    for piece in packed:
        data += piece
        if len(data) > 70_000:
            os.truncate(folder / "a", 10)
            (folder / "b").write_bytes(b"y" * 500_000)
            (folder / "c").unlink(missing_ok=True)
            break
    data += b"".join(packed)
    unpack(tmp_path / "out", bytes(data))
    assert (tmp_path / "out/a").stat().st_size == 200_000
    assert (tmp_path / "out/b").read_bytes() == b"y" * 500_000
    assert not (tmp_path / "out/c").exists()


def test_a_file_swapped_for_a_link_while_it_is_packed_is_not_followed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between the look at a name and its opening it becomes a link: what that leads to is not in the archive."""
    (tmp_path / "outside").write_bytes(b"outside")
    folder = tmp_path / "full"
    folder.mkdir()
    (folder / "f").write_bytes(b"inside")
    really_stat = os.stat

    def swap(path: object, *args: object, **names: object) -> os.stat_result:
        found = really_stat(path, *args, **names)  # type: ignore[arg-type, call-overload]
        if path == "f":
            (folder / "f").unlink()
            (folder / "f").symlink_to(tmp_path / "outside")
        return found  # type: ignore[no-any-return]

    monkeypatch.setattr(os, "stat", swap)
    unpack(tmp_path / "out", b"".join(pack(str(folder))))
    assert not told(tmp_path / "out")


HOSTILE_NAMES = ["/etc/x", "../x", "a/../../x", "a/..", "..", "./../x", "a\0b", "x/" * 300 + "y", "n" * 5000]


@pytest.mark.parametrize("name", HOSTILE_NAMES)
@pytest.mark.parametrize("kind", ["file", "dir", "symlink"])
def test_names_that_lead_out_are_refused(tmp_path: Path, name: str, kind: str) -> None:
    if "\0" in name:
        with pytest.raises(ArchiveRefused):
            beneath.clean(name)
        return
    data = written(Member(name, kind, 0o777, 0, 0, "t")) + bytes(1024)  # type: ignore[arg-type]
    before = told(tmp_path)
    (tmp_path / "out").mkdir()
    with pytest.raises(ArchiveRefused):
        unpack(tmp_path / "out", data)
    assert told(tmp_path) == before | {"out": ("dir", stat.S_IMODE((tmp_path / "out").stat().st_mode), None)}


@pytest.mark.parametrize(
    ("kind", "what"),
    [
        (tarfile.LNKTYPE, "hard link"),
        (tarfile.CHRTYPE, "device"),
        (tarfile.BLKTYPE, "device"),
        (tarfile.FIFOTYPE, "pipe"),
        (tarfile.GNUTYPE_SPARSE, "sparse"),
        (tarfile.CONTTYPE, None),
        (b"Z", "unknown"),
    ],
)
def test_only_files_folders_and_links(tmp_path: Path, kind: bytes, what: str | None) -> None:
    data = tar(("x", b"", {"type": kind, "linkname": "/etc/passwd"}))
    if what is None:
        unpack(tmp_path / "out", data)
        assert told(tmp_path / "out")["x"][0] == "file"
        return
    with pytest.raises(ArchiveRefused, match=what):
        unpack(tmp_path / "out", data)
    assert not told(tmp_path / "out")


def link(name: str, target: str) -> tuple[str, bytes, dict[str, object]]:
    return name, b"", {"type": tarfile.SYMTYPE, "linkname": target}


@pytest.mark.parametrize("outward", [False, True])
@pytest.mark.parametrize("then", ["x/f", "x"])
def test_nothing_is_written_through_a_planted_link(tmp_path: Path, outward: bool, then: str) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "f").write_bytes(b"before")
    data = tar(link("x", str(outside)), (then, b"after", {}))
    with suppress(OSError) if then == "x/f" else nullcontext():
        unpack(tmp_path / "out", data, outward_links=outward)
    assert {p.name: p.read_bytes() for p in outside.iterdir()} == {"f": b"before"}


def test_nothing_is_written_through_a_link_that_stays_inside(tmp_path: Path) -> None:
    """Also not where it would lead to a place that is ours: the rule has no exceptions to get wrong."""
    with pytest.raises(OSError, match=r"Not a directory|Too many levels"):
        unpack(tmp_path / "out", tar(("d", b"", {"type": tarfile.DIRTYPE}), link("x", "d"), ("x/f", b"", {})))


def test_a_link_that_was_there_before_is_replaced_not_followed(tmp_path: Path) -> None:
    (tmp_path / "outside").write_bytes(b"before")
    (tmp_path / "out").mkdir()
    (tmp_path / "out/f").symlink_to(tmp_path / "outside")
    os.link(tmp_path / "outside", tmp_path / "out/g")  # and a second name of a file is not written to
    unpack(tmp_path / "out", tar(("f", b"after", {}), ("g", b"after", {})))
    assert (tmp_path / "outside").read_bytes() == b"before"
    assert told(tmp_path / "out") == {"f": ("file", 0o644, b"after"), "g": ("file", 0o644, b"after")}


@pytest.mark.parametrize(
    ("path", "target", "stays"),
    [
        ("x", "y", True),
        ("x", "/etc/passwd", False),
        ("x", "..", False),
        ("a/x", "..", True),
        ("a/x", "../..", False),
        ("a/b/x", "../../y/z", True),
        ("a/b/x", "y/../../../z", False),
        ("a/x", "l/..", False),  # l may be a link itself, and .. the parent of what it leads to
        ("x", "./y", True),
    ],
)
def test_which_links_stay(path: str, target: str, stays: bool) -> None:
    assert beneath.stays_beneath(path, target) is stays


def test_links_out_are_left_out_and_named(tmp_path: Path) -> None:
    done = unpack(
        tmp_path / "out", tar(link("a", "/etc/passwd"), link("b", "c"), link("d/e", "../../x"), ("c", b"", {}))
    )
    assert done.left_out == ["a", "d/e"]
    assert set(told(tmp_path / "out")) == {"b", "c"}


def test_of_a_name_that_comes_twice_the_last_counts(tmp_path: Path) -> None:
    unpack(tmp_path / "out", tar(("f", b"1", {}), link("f", "g"), ("f", b"3", {})))
    assert told(tmp_path / "out") == {"f": ("file", 0o644, b"3")}
    with pytest.raises(OSError, match="directory"):
        unpack(tmp_path / "two", tar(("f/g", b"", {}), ("f", b"", {})))


def test_a_bomb_is_refused_before_it_is_written(tmp_path: Path) -> None:
    data = written(Member("huge", "file", 0o644, 1 << 40, 0)) + bytes(1 << 16)
    with pytest.raises(ArchiveRefused, match="larger"):
        unpack(tmp_path / "out", data, limit_bytes=1 << 30)
    assert not told(tmp_path / "out")


@pytest.mark.parametrize("cut", [0, 100, 512, 700, 1024])
def test_an_archive_that_is_cut_off_is_no_whole_one(tmp_path: Path, cut: int) -> None:
    with pytest.raises(ArchiveRefused):
        unpack(tmp_path / "out", tar(("f", b"x" * 600, {}))[:cut])
    assert not told(tmp_path / "out")


@pytest.mark.parametrize(
    "body", [b"5 a=\n", b"999 path=x\n", b"0 \n", b"x path=y\n", b"11 pathxyz\n", b"12 path=yxx", b"3 \n" * 9]
)
def test_extended_headers_that_cannot_be_read(tmp_path: Path, body: bytes) -> None:
    block = bytearray(written(Member("pax", "file", 0o644, len(body), 0)))
    block[156:157] = b"x"
    block[148:156] = b" " * 8
    block[148:156] = b"%06o\0 " % sum(block)
    try:
        unpack(tmp_path / "out", bytes(block) + body + bytes(-len(body) % 512) + bytes(1024))
    except ArchiveRefused:
        return
    assert not told(tmp_path / "out")


@given(st.binary(max_size=3000), st.integers(1, 700))
def test_any_bytes_end_in_members_or_a_refusal(data: bytes, piece: int) -> None:
    read_all(data[at : at + piece] for at in range(0, len(data), piece))


GOOD = tar(("a" * 150, b"content" * 100, {}), link("l", "t" * 150), ("d", b"", {"type": tarfile.DIRTYPE}))


@given(st.lists(st.tuples(st.integers(0, len(GOOD) - 1), st.integers(0, 255)), max_size=8))
def test_a_spoiled_archive_does_no_harm(spoiled: list[tuple[int, int]]) -> None:
    data = bytearray(GOOD)
    for at, value in spoiled:
        data[at] = value
    read_all([bytes(data)])


def read_all(pieces: Iterable[bytes]) -> None:
    reader = Reader(1 << 30)
    try:
        for piece in pieces:
            for item in reader.feed(piece):
                assert isinstance(item, Member | bytes)
            assert len(reader._body) <= 65_536
            assert len(reader._block) <= 512
    except ArchiveRefused:
        return


@pytest.mark.parametrize("way", [beneath.open_beneath, beneath.open_by_steps])
def test_both_ways_of_opening_agree(tmp_path: Path, way: object) -> None:
    (tmp_path / "d/e").mkdir(parents=True)
    (tmp_path / "d/e/f").write_bytes(b"x")
    (tmp_path / "d/link").symlink_to("e")
    (tmp_path / "d/e/to").symlink_to("f")
    root = os.open(tmp_path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fd = way(root, "d/e/f", os.O_RDONLY)  # type: ignore[operator]
        assert os.read(fd, 9) == b"x"
        os.close(fd)
        for path in ("d/link/f", "d/e/to", "d/e/nothing", "d/e/f/g"):
            with pytest.raises(OSError, match=r"."):
                way(root, path, os.O_RDONLY)  # type: ignore[operator]
    finally:
        os.close(root)


def test_a_header_that_was_damaged_is_no_header(tmp_path: Path) -> None:
    data = bytearray(tar(("f", b"", {})))
    data[0] ^= 1
    with pytest.raises(ArchiveRefused, match="checksum"):
        unpack(tmp_path / "out", bytes(data))
