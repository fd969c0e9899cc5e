"""Files as a guest may plant them: bounded, refused or given as they are, and never an answer that does not come."""

from __future__ import annotations

import threading
import time

import pytest
from tests.faults.world import assert_answers

from casemate.errors import CasemateError, FileRefused, InvalidSpec
from casemate.sdk import Sandbox

pytestmark = pytest.mark.vm
NAMES = b"""
import os
os.makedirs("odd")
for name in (b"\\xff\\xfe", b"new\\nline", b"-rf", b" ", "\\u202e".encode(), b"a" * 255):
    open(b"odd/" + name, "w").close()
os.symlink("/etc/shadow", "odd/shadow")
os.symlink("odd", "odd/self")
os.symlink("../" * 50 + "etc/passwd", "odd/up")
"""


def test_odd_names_are_listed_as_text(sandbox: Sandbox) -> None:
    sandbox.commands.run(["python3", "-"], stdin=NAMES, check=True)
    found = {entry.name: entry.type for entry in sandbox.files.list("odd")}
    files = {"\ufffd\ufffd", "new\nline", "-rf", " ", "\u202e", "a" * 255}
    assert found == dict.fromkeys(files, "file") | dict.fromkeys(["shadow", "self", "up"], "symlink")


@pytest.mark.parametrize("path", ["", "nul\0nul", "x" * 4097, "/".join("y" * 2100)])
def test_a_path_that_cannot_be_is_refused_here(sandbox: Sandbox, path: str) -> None:
    with pytest.raises(InvalidSpec):
        sandbox.files.read(path)


def test_a_link_gives_no_more_than_its_user_may(sandbox: Sandbox) -> None:
    sandbox.commands.run("mkdir odd; ln -s /etc/shadow odd/shadow; ln -s /etc odd/etc")
    for path in ("odd/shadow", "odd/etc/shadow", "../../etc/shadow"):
        with pytest.raises(FileRefused) as caught:
            sandbox.files.read(path)
        assert caught.value.evidence["errno"] == "EACCES"
    with pytest.raises(FileRefused):
        sandbox.files.write("odd/etc/passwd", b"root::0:0::/:/bin/sh\n")
    sandbox.files.write("odd/shadow", b"mine")  # the link is replaced, not what it points to
    assert sandbox.files.stat("odd/shadow").type == "file"


@pytest.mark.parametrize("path", ["/dev/zero", "/dev/ttyS0", "/dev/vport0p1", "pipe", "socket"])
def test_what_is_no_file_is_not_read(sandbox: Sandbox, path: str) -> None:
    plant = "import os, socket; os.mkfifo('pipe'); socket.socket(socket.AF_UNIX).bind('socket')"
    sandbox.commands.run(["python3", "-c", plant])
    with pytest.raises(FileRefused):
        sandbox.files.read(path, user="root")
    assert_answers(sandbox)


def test_files_of_the_kernel_that_would_wait_do_not(sandbox: Sandbox) -> None:
    for path in ("/proc/kmsg", "/proc/self/mem"):
        with pytest.raises(FileRefused):
            sandbox.files.read(path, user="root")
    assert b"MemTotal" in sandbox.files.read("/proc/meminfo")
    assert_answers(sandbox)


def test_a_folder_with_very_many_entries(sandbox: Sandbox, bystander: Sandbox) -> None:
    """As many as the guest's file systems take; one without end is a test of the link's, with a guest that lies."""
    make = "import os; os.mkdir('/dev/shm/many')\nfor n in range(20_000): os.close(os.open(f'/dev/shm/many/{n}', 64))"
    sandbox.commands.run(["python3", "-c", make], check=True, timeout_s=120)
    started = time.monotonic()
    assert len(sandbox.files.list("/dev/shm/many")) == 20_000
    assert time.monotonic() - started < 30
    assert_answers(sandbox)
    assert_answers(bystander)


def test_a_file_that_grows_shrinks_and_goes_while_it_is_read(sandbox: Sandbox) -> None:
    """What was opened is read to an end; what takes its name meanwhile is not looked at."""
    sandbox.commands.run("head -c 40M /dev/zero > file")
    with sandbox.files.stream("file") as pieces:
        first = next(iter(pieces))
        sandbox.commands.run("truncate -s 1M file; rm file; mkfifo file")
        rest = sum(len(piece) for piece in pieces)
    assert 0 < len(first) + rest <= 40 * 2**20
    sandbox.commands.run("rm file; (while :; do head -c 1M /dev/zero; done) >> file & echo")
    stop = threading.Event()

    def stop_soon() -> None:
        time.sleep(1)
        stop.set()

    threading.Thread(target=stop_soon).start()
    with sandbox.files.stream("file") as pieces:  # may grow for as long as we read: leaving ends it
        for _ in pieces:
            if stop.is_set():
                break
    assert_answers(sandbox)


def test_reading_can_be_given_up(sandbox: Sandbox) -> None:
    sandbox.commands.run("truncate -s 900M hole")
    for _ in range(20):
        with sandbox.files.stream("hole") as pieces:
            next(iter(pieces))
    assert_answers(sandbox)
    with pytest.raises(CasemateError):
        sandbox.files.read("nothing")
