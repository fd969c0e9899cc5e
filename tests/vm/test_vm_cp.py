"""``casemate cp`` between this machine and a real guest, honest and not."""

from __future__ import annotations

import io
import os
import subprocess
import sys
import tarfile
import time
from pathlib import Path

import httpx
import pytest
from vm_world import Daemon

from casemate.errors import ArchiveRefused, FileRefused
from casemate.sdk import Sandbox

pytestmark = pytest.mark.vm
CASEMATE = [sys.executable, "-m", "casemate.cli"]
TELL = "cd {} && find . -mindepth 1 -printf '%P %y %m %s %l\\n' | LC_ALL=C sort"


def cp(*words: str, given: bytes = b"") -> subprocess.CompletedProcess[bytes]:
    return subprocess.run([*CASEMATE, "cp", *words], input=given, capture_output=True, timeout=120, check=False)


def told(folder: Path) -> str:
    done = subprocess.run(["sh", "-c", TELL.format(folder)], capture_output=True, text=True, check=True)
    return files_only(done.stdout)


def told_there(sandbox: Sandbox, folder: str) -> str:
    return files_only(sandbox.commands.run(TELL.format(folder), check=True).stdout)


def files_only(listing: str) -> str:
    """A folder's own size is its file system's business."""
    rows = [line.split(" ") for line in listing.splitlines()]
    return "\n".join(" ".join(row[:3] + (row[3:] if row[1] == "f" else row[4:])) for row in rows)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "data"
    (folder / "sub/deep").mkdir(parents=True)
    (folder / "sub").chmod(0o750)
    (folder / "run.sh").write_text("#!/bin/sh\necho it runs\n")
    (folder / "run.sh").chmod(0o755)
    (folder / "sub/secret").write_bytes(os.urandom(3_000_000))
    (folder / "sub/secret").chmod(0o600)
    (folder / "sub/deep" / ("n" * 180)).write_text("long")
    (folder / "to").symlink_to("sub/secret")
    for number in range(200):
        (folder / f"sub/deep/{number}").write_text(str(number))
    return folder


def test_a_folder_goes_in_and_comes_out_the_same(sandbox: Sandbox, folder: Path, tmp_path: Path) -> None:
    assert cp(str(folder), f"{sandbox.id}:").returncode == 0
    assert told_there(sandbox, "data") == told(folder)
    assert sandbox.commands.run("./data/run.sh; stat -c %U data/sub/secret").stdout == "it runs\nuser\n"
    (tmp_path / "back").mkdir()
    done = cp(f"{sandbox.id}:data", str(tmp_path / "back"))
    assert (done.returncode, done.stderr) == (0, b"")
    assert told(tmp_path / "back/data") == told(folder)
    assert (tmp_path / "back/data/sub/secret").read_bytes() == (folder / "sub/secret").read_bytes()
    assert cp(f"{folder}/.", f"{sandbox.id}:other").returncode == 0
    assert told_there(sandbox, "other") == told(folder)
    assert cp(f"{sandbox.id}:data/.", str(tmp_path / "third")).returncode == 0
    assert told(tmp_path / "third") == told(folder)


def test_files_and_streams(sandbox: Sandbox, tmp_path: Path) -> None:
    tool = tmp_path / "tool"
    tool.write_bytes(b"#!/bin/sh\necho hi\n")
    tool.chmod(0o750)
    assert cp(str(tool), f"{sandbox.id}:bin/renamed").returncode == 0
    assert sandbox.commands.run("./bin/renamed; stat -c %a bin/renamed").stdout == "hi\n750\n"
    assert cp(str(tool), f"{sandbox.id}:bin").returncode == 0
    assert cp(f"{sandbox.id}:bin/tool", f"{tmp_path}/out").returncode == 0
    assert (tmp_path / "out").stat().st_mode & 0o777 == 0o750
    data = os.urandom(500_000)
    assert cp("-", f"{sandbox.id}:piped", given=data).returncode == 0
    assert cp(f"{sandbox.id}:piped", "-").stdout == data
    with tarfile.open(fileobj=io.BytesIO(cp(f"{sandbox.id}:bin", "-").stdout)) as archive:
        assert sorted(archive.getnames()) == [".", "renamed", "tool"]


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("a", "b"), "one of SRC and DST"),
        (("{}:nothing", "out"), "nothing"),
        (("/no/such", "{}:x"), "No such file"),
        (("{}:/etc/shadow", "out"), "Permission"),
        (("{}:/root", "out"), "Permission"),
        (("{}:/dev/zero", "out"), ""),
    ],
)
def test_what_cannot_be_copied_says_why(sandbox: Sandbox, words: tuple[str, str], says: str, tmp_path: Path) -> None:
    target = [word.format(sandbox.id).replace("out", str(tmp_path / "out")) for word in words]
    done = cp(*target)
    assert done.returncode == 1
    assert done.stderr.startswith(b"error: ")
    assert says in done.stderr.decode()
    assert not (tmp_path / "out").is_file()


def test_links_that_lead_out_stay_there(sandbox: Sandbox, tmp_path: Path) -> None:
    sandbox.commands.run(
        "mkdir d; cd d; ln -s /etc/passwd abs; ln -s ../../../etc/passwd up; ln -s f in; echo x > f;"
        "ln -s . self; ln -s self/.. out; mkfifo pipe; touch 'new\nline'",
        check=True,
    )
    done = cp(f"{sandbox.id}:d", str(tmp_path / "d"))
    assert done.returncode == 1
    assert done.stderr.decode().count("a symbolic link that leads out") == 3
    assert sorted(p.name for p in (tmp_path / "d").iterdir()) == ["f", "in", "new\nline", "self"]


def test_a_link_planted_by_one_copy_is_not_written_through_by_the_next(sandbox: Sandbox, tmp_path: Path) -> None:
    """Also when it was put there by other means: the folder's own links are not followed."""
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "f").write_text("before")
    (tmp_path / "d").mkdir()
    (tmp_path / "d/sub").symlink_to(outside)
    (tmp_path / "d/f").symlink_to(outside / "f")
    sandbox.commands.run("mkdir -p d/sub; echo after > d/f; echo after > d/sub/f", check=True)
    done = cp(f"{sandbox.id}:d/.", str(tmp_path / "d"))
    assert done.returncode == 1
    assert b"directory" in done.stderr
    assert (outside / "f").read_text() == "before"
    assert [p.name for p in outside.iterdir()] == ["f"]


def test_a_sparse_file_does_not_fill_this_machine(sandbox: Sandbox, tmp_path: Path) -> None:
    sandbox.commands.run("mkdir d; truncate -s 200G d/huge", check=True)
    started = time.monotonic()
    done = cp("--limit", "100", f"{sandbox.id}:d", str(tmp_path / "d"))
    assert done.returncode == 1
    assert b"larger than allowed" in done.stderr
    assert time.monotonic() - started < 30
    assert not list((tmp_path / "d").iterdir())


def test_what_is_swapped_while_it_is_copied_stays_inside(sandbox: Sandbox, tmp_path: Path) -> None:
    """A program in the guest that turns a file into a link, and back, thousands of times."""
    script = (
        "import os\nos.makedirs('d/sub', exist_ok=True)\nfor n in range(50): open(f'd/sub/{n}', 'w').write('mine')\n"
        "print('ready', flush=True)\n"
        "while True:\n"
        "  os.rename('d/sub', 'd/was'); os.symlink('/etc', 'd/sub'); os.unlink('d/sub'); os.rename('d/was', 'd/sub')\n"
        "  os.unlink('d/sub/7'); os.symlink('/etc/hostname', 'd/sub/7'); os.unlink('d/sub/7')\n"
        "  open('d/sub/7', 'w').write('mine')\n"
    )
    with sandbox.commands.start(["python3", "-c", script]) as running:
        next(iter(running.output()))
        for number in range(8):
            done = cp(f"{sandbox.id}:d", str(tmp_path / f"d{number}"))
            assert done.returncode in (0, 1), done.stderr
            for path in (tmp_path / f"d{number}").rglob("*"):
                assert not path.is_symlink()
                assert path.is_dir() or path.read_text() in ("mine", "", "\0" * 4)


def hostile(*members: tuple[str, bytes, str]) -> bytes:
    held = io.BytesIO()
    with tarfile.open(fileobj=held, mode="w") as archive:
        for name, kind, target in members:
            info = tarfile.TarInfo(name)
            info.type, info.linkname = kind, target
            archive.addfile(info)
    return held.getvalue()


@pytest.mark.parametrize(
    "data",
    [
        hostile(("/etc/cron.d/x", tarfile.REGTYPE, "")),
        hostile(("../x", tarfile.REGTYPE, "")),
        hostile(("x", tarfile.LNKTYPE, "/etc/passwd")),
        hostile(("x", tarfile.CHRTYPE, "")),
        b"no archive at all" * 100,
        hostile(("x", tarfile.REGTYPE, ""))[:300],
        b"",
    ],
)
def test_the_agent_refuses_a_hostile_archive(sandbox: Sandbox, data: bytes) -> None:
    with pytest.raises(ArchiveRefused):
        sandbox.files.unpack("into", data)
    assert told_there(sandbox, "into") == ""
    assert sandbox.commands.run("echo still here").stdout == "still here\n"


def test_the_agent_follows_no_link_an_archive_brought(sandbox: Sandbox) -> None:
    sandbox.commands.run("mkdir out", check=True)
    with pytest.raises(FileRefused):
        sandbox.files.unpack("into", hostile(("l", tarfile.SYMTYPE, "/home/user/out"), ("l/x", tarfile.REGTYPE, "")))
    assert sandbox.files.list("out") == []
    with pytest.raises(FileRefused):  # with the user's rights only
        sandbox.files.unpack("/etc", hostile(("x", tarfile.REGTYPE, "")))


def test_ranges_folders_and_moves(sandbox: Sandbox, daemon: Daemon) -> None:
    data = os.urandom(1_000_000)
    sandbox.files.write("f", data)
    assert sandbox.files.read("f", offset=999_000) == data[999_000:]
    assert sandbox.files.read("f", offset=10, length=100) == data[10:110]
    sandbox.files.mkdir("a/b/c")
    sandbox.files.move("f", "a/b/g")
    assert [(e.name, e.type) for e in sandbox.files.list("a/b")] == [("c", "dir"), ("g", "file")]
    with pytest.raises(FileRefused):
        sandbox.files.move("f", "h")
    transport = httpx.HTTPTransport(uds=str(daemon.home / "run/daemon.sock"))
    with httpx.Client(transport=transport, base_url="http://casemate") as client:
        for asked, part in (("0-9", data[:10]), ("999990-", data[-10:]), ("-7", data[-7:]), ("5-2000000", data[5:])):
            answer = client.get(
                f"/v1/sandboxes/{sandbox.id}/files", params={"path": "a/b/g"}, headers={"range": f"bytes={asked}"}
            )
            assert (answer.status_code, answer.content) == (206, part)
            assert answer.headers["content-range"].endswith("/1000000")
        path = f"/v1/sandboxes/{sandbox.id}/files"
        past = client.get(path, params={"path": "a/b/g"}, headers={"range": "bytes=1000000-"})
        assert (past.status_code, past.headers["content-range"]) == (416, "bytes */1000000")
        assert client.get(path, params={"path": "a/b/g"}, headers={"range": "lines=1-2"}).status_code == 400


def test_a_folder_that_is_more_than_the_guests_memory_is_refused(sandbox: Sandbox, tmp_path: Path) -> None:
    """/tmp is memory there, and what the agent writes counts against nobody's limit but its own."""
    sandbox.commands.run("head -c 200M /dev/zero > /dev/shm/x", check=True)
    (tmp_path / "big").mkdir()
    with (tmp_path / "big/zeros").open("wb") as file:
        file.truncate(240 << 20)
    done = cp(str(tmp_path / "big"), f"{sandbox.id}:/tmp")
    assert done.returncode == 1
    assert b"memory" in done.stderr
    assert sandbox.commands.run("rm -r /tmp/big /dev/shm/x; echo alive").stdout == "alive\n"
