"""Which script CPython believes it was started with.

`python3 SCRIPT` keeps SCRIPT as C wide strings in its configuration (`argv[0]`, and `run_filename`,
which is absolute) and reads them only after the site import, when it opens the script. The zygote is
started with a SCRIPT that is a long mark; a child writes its real script over the mark, in its own
memory, and lets CPython go on: compiling, `__main__`, `sys.path[0]`, the printing of errors, exit codes and
finalisation are then CPython's own. `trial` in zygote.py proves it once on each interpreter; where it
does not work, children exec a new `python3` instead.

Source: CPython Modules/main.c (pymain_run_python), Python/initconfig.c (config_run_filename_abspath).
"""

import os
import re
import sys
from typing import Callable, List, NamedTuple, Optional, Sequence

_PR_SET_DUMPABLE = 4
_PR_SET_MM = 35
_PR_SET_MM_ARG_END = 9
_REGION = re.compile(rb"^([0-9a-f]+)-([0-9a-f]+) rw.p \S+ \S+ (\d+)[ \t]*(.*)$", re.M)


class Place(NamedTuple):
    """Where a copy of the mark begins; an absolute one begins with the folder the zygote started in."""

    address: int
    absolute: bool


def _wide(text: str) -> bytes:
    return text.encode("utf-32-le", "surrogatepass") + b"\0\0\0\0"


class Program:
    """The mark's places in this process, and the means to write over them."""

    def __init__(self, mark: str) -> None:
        """*mark*: the relative name the zygote was started with, in the folder that is current now."""
        self._mark = mark
        self._folder = os.getcwd() + "/"
        self.memory = -1
        self.open()
        self.places = self._find()
        self.close()

    def open(self) -> None:
        """Reach this process's memory. After a fork an older descriptor is the parent's memory still."""
        self.memory = os.open("/proc/self/mem", os.O_RDWR | os.O_CLOEXEC)

    def _find(self) -> List[Place]:
        needle = _wide(self._mark)
        folder = _wide(self._folder)[:-4]
        own = id(needle) + bytes.__basicsize__ - 1
        with open("/proc/self/maps", "rb") as maps:
            regions = _REGION.findall(maps.read())
        places = []
        for first, last, inode, name in regions:
            if inode != b"0" or name.startswith((b"[stack", b"[v")):
                continue
            start = int(first, 16)
            content = os.pread(self.memory, int(last, 16) - start, start)
            at = content.find(needle)
            while at >= 0:
                if start + at != own:
                    absolute = content.endswith(folder, 0, at)
                    places.append(Place(start + at - (len(folder) if absolute else 0), absolute))
                at = content.find(needle, at + 4)
        return places

    @property
    def complete(self) -> bool:
        return {place.absolute for place in self.places} == {True, False}

    def fits(self, path: str) -> bool:
        return len(path) < len(self._mark)

    def become(self, path: str, cwd: str) -> None:
        """Make *path* (as the user wrote it; relative to *cwd*) the script of this process."""
        expected = {True: bytearray(_wide(self._folder + self._mark)), False: bytearray(_wide(self._mark))}
        written = {True: _wide(absolute_path(path, cwd)), False: _wide(path)}
        seen = {kind: bytearray(len(want)) for kind, want in expected.items()}
        # Copies that were freed may be anything by now: look again, and allocate nothing in between.
        for place in self.places:
            now = seen[place.absolute]
            os.preadv(self.memory, [now], place.address)
            if now == expected[place.absolute]:
                os.pwrite(self.memory, written[place.absolute], place.address)

    def retitle(self, argv: Sequence[bytes]) -> None:
        """Show *argv* in /proc/self/cmdline (needs CAP_SYS_RESOURCE; without it nothing changes)."""
        if _prctl is None:
            return
        with open("/proc/self/stat", "rb") as stat:
            fields = stat.read().rpartition(b") ")[2].split()
        first, last = int(fields[45]), int(fields[46])
        title = b"".join(part + b"\0" for part in argv)
        if len(title) <= last - first and _prctl(_PR_SET_MM, _PR_SET_MM_ARG_END, first + len(title), 0, 0) == 0:
            os.pwrite(self.memory, title, first)

    def close(self) -> None:
        os.close(self.memory)


def absolute_path(path: str, cwd: str) -> str:
    """As CPython makes a script's path absolute: nothing is normalised."""
    if path == "." and sys.version_info >= (3, 11):
        return cwd
    return path if path.startswith("/") else cwd + "/" + path


def _find_prctl() -> Optional[Callable[..., int]]:
    try:
        import ctypes
    except ImportError:
        return None
    prctl = ctypes.CDLL(None).prctl
    prctl.argtypes = [ctypes.c_int] + [ctypes.c_ulong] * 4
    call: Callable[..., int] = prctl
    return call


_prctl = _find_prctl()


def allow_own_proc() -> None:
    """A process that gave up root may not read its own /proc entries (as /dev/stdout) until it says so."""
    if _prctl is not None:
        _prctl(_PR_SET_DUMPABLE, 1, 0, 0, 0)
