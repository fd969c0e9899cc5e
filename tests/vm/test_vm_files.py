"""Files in a real guest, over the SDK."""

from __future__ import annotations

import hashlib
import os

import pytest

from casemate.errors import FileRefused
from casemate.sdk import Sandbox

pytestmark = pytest.mark.vm


def test_what_is_written_is_read(sandbox: Sandbox) -> None:
    data = os.urandom(3_000_001)
    assert sandbox.files.write("a/b/c.bin", data) == len(data)
    assert sandbox.files.read("a/b/c.bin") == data
    found = sandbox.commands.run("sha256sum < a/b/c.bin; stat -c '%U %a' a/b/c.bin").stdout.split()
    assert found == [hashlib.sha256(data).hexdigest(), "-", "user", "644"]


def test_listing_and_stat_tell_what_is_there(sandbox: Sandbox) -> None:
    sandbox.commands.run("mkdir d; cd d; ln -s x link; mkfifo pipe; touch 'ünï\n'; mkdir -m 750 sub")
    entries = {entry.name: entry for entry in sandbox.files.list("d")}
    assert {name: entry.type for name, entry in entries.items()} == {
        "link": "symlink",
        "pipe": "other",
        "sub": "dir",
        "ünï\n": "file",
    }
    assert entries["sub"].mode == 0o750
    assert sandbox.files.stat("d/sub").uid == 1000


@pytest.mark.parametrize(
    ("path", "errno"),
    [("nothing", "ENOENT"), ("/etc/shadow", "EACCES"), ("/etc", "EISDIR"), ("x" * 300, "ENAMETOOLONG")],
)
def test_what_cannot_be_read_says_why(sandbox: Sandbox, path: str, errno: str) -> None:
    with pytest.raises(FileRefused) as caught:
        sandbox.files.read(path)
    assert caught.value.evidence["errno"] == errno


def test_a_fifo_does_not_hang_a_reader(sandbox: Sandbox) -> None:
    sandbox.commands.run("mkfifo pipe")
    with pytest.raises(FileRefused):
        sandbox.files.read("pipe")


def test_a_write_that_fails_leaves_what_was_there(sandbox: Sandbox) -> None:
    sandbox.files.write("kept", b"before")
    sandbox.commands.run("fallocate -l $(($(df --output=avail -B1 . | tail -1) - (32 << 20))) filler", check=True)
    with pytest.raises(FileRefused) as caught:
        sandbox.files.write("kept", (bytes(1 << 20) for _ in range(64)))  # more than is left of the disk
    assert caught.value.evidence.get("errno", "ENOSPC") == "ENOSPC"
    assert sandbox.files.read("kept") == b"before"
    assert [entry.name for entry in sandbox.files.list(".") if entry.name != "filler" and entry.name[0] != "."] == [
        "kept"
    ]


def test_removing(sandbox: Sandbox) -> None:
    sandbox.commands.run("mkdir -p full/er && touch full/er/x one")
    sandbox.files.remove("one")
    with pytest.raises(FileRefused):
        sandbox.files.remove("full")
    sandbox.files.remove("full", recursive=True)
    assert not [entry.name for entry in sandbox.files.list(".") if not entry.name.startswith(".")]
