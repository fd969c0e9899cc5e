"""The jail around a VMM, as data, and its command line. Pure.

bubblewrap makes it: empty network, mount, PID, IPC, UTS, cgroup and user namespaces, no capability,
``no_new_privs``. Its root is a read-only tmpfs with the VMM's own closure (binary, libraries, firmware)
at /usr and the files of one sandbox; what the VMM may write it is given as a descriptor.
Source: bwrap(1), which resolves /proc/self/fd/N to a path and so needs to be let through the folders above it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

INFO_FD_MARK = "@info-fd@"  # the launcher puts its own descriptor's number here


@dataclass(frozen=True, slots=True)
class Bind:
    """The open file or folder *descriptor* appears at *path* inside."""

    descriptor: int
    path: str
    writable: bool = False


@dataclass(frozen=True, slots=True)
class Jail:
    binds: tuple[Bind, ...]

    def argv(self, command: Sequence[str]) -> list[str]:
        """bubblewrap's command line that runs *command* as the jail's only process."""
        argv = ["bwrap", "--unshare-all", "--die-with-parent", "--as-pid-1", "--new-session"]
        argv += [
            "--cap-drop",
            "ALL",
            "--clearenv",
            "--setenv",
            "LC_ALL",
            "C.UTF-8",
            "--info-fd",
            INFO_FD_MARK,
        ]
        for bind in self.binds:
            argv += [
                "--bind" if bind.writable else "--ro-bind",
                f"/proc/self/fd/{bind.descriptor}",
                bind.path,
            ]
        for link in ("lib", "lib64", "bin"):
            argv += ["--symlink", f"usr/{link}", f"/{link}"]
        argv += ["--remount-ro", "/", "--chdir", "/", "--hostname", "casemate", "--"]
        return argv + list(command)
