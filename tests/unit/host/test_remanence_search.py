"""The search for a canary itself: it finds what is there, wherever that is, and nothing once it is gone."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.remanence import CHUNK, Canary, Search

HOLDER = """
import sys
first, second = sys.stdin.readline().strip(), sys.stdin.readline().strip()
{keep}
print("kept", flush=True)
sys.stdin.readline()
{drop}
print("dropped", flush=True)
sys.stdin.readline()
"""
IN_MEMORY = "at = bytearray(3 << 20); at[9:41] = first.encode(); at[41:73] = second.encode()"
IN_A_FILE = "import tempfile; file = tempfile.TemporaryFile(); file.write((first + second).encode()); file.flush()"
MAPPED = IN_A_FILE + "; import mmap; mapped = mmap.mmap(file.fileno(), 64); file.close()"


@contextmanager
def holder(canary: Canary, keep: str, drop: str) -> Iterator[subprocess.Popen[str]]:
    """A process that has made the canary of its shares; a line more, and it lets go of it."""
    argv = [sys.executable, "-c", HOLDER.format(keep=keep, drop=drop)]
    with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        say(process, "\n".join(canary.shares))
        yield process
        assert process.stdin is not None
        process.stdin.close()


def say(process: subprocess.Popen[str], line: str) -> None:
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.write(line + "\n")
    process.stdin.flush()
    assert process.stdout.readline()


def in_files(canary: Canary, folder: Path) -> set[str]:
    search = Search(canary)
    search.below(folder)
    return search.found.places


def in_processes(canary: Canary, pid: int) -> set[str]:
    search = Search(canary)
    search.memory(pid, "memory")
    search.held(pid)
    assert search.found.memory_bytes > 1 << 20
    return {place.partition(" ")[0] for place in search.found.places}


def test_it_finds_a_copy_anywhere_in_a_sparse_file(tmp_path: Path) -> None:
    canary = Canary.draw()
    for place in (0, CHUNK - 40, CHUNK, 3 * CHUNK - 63, (1 << 30) - 10):
        path = tmp_path / f"at {place}"
        with path.open("wb") as file:
            file.write(bytes(CHUNK + 5))
            file.seek(place)
            file.write(canary.text.encode())
            file.truncate(2 << 30)
        assert in_files(canary, tmp_path) == {path.name}
        path.unlink()
    assert in_files(canary, tmp_path) == set()


def test_a_torn_copy_counts_and_half_of_it_does_not(tmp_path: Path) -> None:
    canary = Canary.draw()
    (tmp_path / "torn").write_text(canary.text[10:50])
    (tmp_path / "half").write_text("\n".join(canary.shares))
    (tmp_path / "another").write_text(Canary.draw().text)
    assert in_files(canary, tmp_path) == {"torn"}


def test_what_was_read_before_is_not_taken_for_what_is_read_now(tmp_path: Path) -> None:
    """The two halves lie in two files, or on both sides of a hole."""
    canary = Canary.draw()
    for name, share in zip(("a", "b"), canary.shares, strict=True):
        (tmp_path / name).write_text(share)
    with (tmp_path / "hole").open("wb") as file:
        file.write(bytes(CHUNK - 32) + canary.shares[0].encode())
        file.seek(8 * CHUNK)
        file.write(canary.shares[1].encode())
    assert in_files(canary, tmp_path) == set()


def test_it_finds_it_in_a_process() -> None:
    canary = Canary.draw()
    with holder(canary, IN_MEMORY, "at[:100] = bytes(100)") as process:
        assert in_processes(canary, process.pid) == {"memory"}
        say(process, "")
        assert in_processes(canary, process.pid) == set()


def test_it_finds_it_in_a_deleted_file() -> None:
    canary = Canary.draw()
    for keep, drop in ((IN_A_FILE, "file.close()"), (MAPPED, "mapped.close()")):
        with holder(canary, keep, drop) as process:
            assert "deleted" in in_processes(canary, process.pid)
            say(process, "")
            assert "deleted" not in in_processes(canary, process.pid)


def test_it_finds_it_in_swap(tmp_path: Path) -> None:
    canary, area = Canary.draw(), tmp_path / "area"
    area.write_bytes(os.urandom(5000) + canary.text.encode())
    table = tmp_path / "swaps"
    table.write_text(f"Filename\tType\tSize\tUsed\tPriority\n{area}\tfile\t5064\t64\t-2\n")
    search = Search(canary)
    search.swap(table)
    assert search.found.places == {f"swap {area}"}
    assert search.found.swaps == (str(area),)
