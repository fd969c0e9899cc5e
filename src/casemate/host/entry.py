"""In a child of the launcher, between fork and exec: how it becomes a VMM in its jail, or mmdebstrap.

In this order: its descriptors, a session and limits of its own, its control group, the files of its jail, its uid,
its filter; what cannot be taken on ends it. Nothing here returns.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import resource
import signal
from collections.abc import Collection, Sequence
from dataclasses import dataclass

from casemate.host import seccomp
from casemate.host.cgroup import Group
from casemate.host.jail import Jail
from casemate.host.jailer import MAX_OPEN_FILES, NEEDED_CAPABILITIES, Jailer
from casemate.host.mounts import lay_out, lay_out_chroot

PR_SET_PDEATHSIG = 1  # Source: linux/prctl.h
PR_CAPBSET_DROP = 24
PR_SET_NO_NEW_PRIVS = 38
PR_SET_THP_DISABLE = 41
MAX_CAPABILITIES = 64
MAX_PROCESSES = 512  # of one VMM's uid, threads included
STACK_BYTES = 8 << 20  # of a thread
VMM_OOM_SCORE = 500  # when memory runs out, the kernel takes a VMM and not the daemon
PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_libc = ctypes.CDLL(None, use_errno=True)


@dataclass(frozen=True, slots=True)
class Entry:
    """What a child becomes. *group* is None where the host has none to give and that is allowed."""

    jail: Jail | Jailer
    command: Sequence[str]
    descriptors: Sequence[int]  # its 2, 3, 4, …
    info: int  # bubblewrap says here which pid the command has
    uid: int | None
    group: Group | None
    parent: int


def enter(entry: Entry) -> None:
    """Become the VMM. Never returns."""
    try:
        jail, nothing = entry.jail, os.open("/dev/null", os.O_RDWR)
        said = entry.descriptors[0] if isinstance(jail, Jailer) or jail.output else nothing
        given = [nothing, said, *entry.descriptors, entry.info]
        info, listed = len(given) - 1, None
        if jail.filter is not None:
            given.append(_in_memory(seccomp.compiled(jail.filter)))
            listed = info + 1
        if entry.group is not None:
            entry.group.enter()
        _limit(entry)
        _place(given)
        _fresh_session()
        os.umask(0)  # its sockets are for the daemon, of another uid; the folder above them is the daemon's only
        with open("/proc/self/oom_score_adj", "w") as score:
            score.write(str(VMM_OOM_SCORE))
        argv = _stay_root(jail, entry, info, listed) if isinstance(jail, Jailer) else _become(jail, entry, info, listed)
        # A huge page for each thread's stack and at the end of the translated code: megabytes that nobody uses
        _libc.prctl(PR_SET_THP_DISABLE, 1, 0, 0, 0)
        _libc.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
        _libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)  # after the last uid change, which clears it
        if os.getppid() == entry.parent:  # else it died before its death would have been noticed
            os.execvpe(argv[0], argv, {"PATH": PATH, "LC_ALL": "C.UTF-8"})
    except BaseException as error:
        os.write(2, f"casemate launcher: {error!r}\n".encode())
    finally:
        os._exit(127)


def _become(jail: Jail, entry: Entry, info: int, listed: int | None) -> list[str]:
    """Take on the VMM's uid, where we may give it one; what is to be executed then."""
    if (uid := entry.uid) is None:
        return jail.argv(entry.command, info, filter_descriptor=listed)
    argv = jail.argv(entry.command, info, lay_out(jail, uid), listed)
    os.setgroups([])
    os.setresgid(uid, uid, uid)
    os.setresuid(uid, uid, uid)
    return argv


def _stay_root(jail: Jailer, entry: Entry, info: int, listed: int | None) -> list[str]:
    """The jailer changes the uid itself, and needs root until then."""
    assert entry.uid is not None
    assert listed is not None
    argv = jail.argv(entry.command, info, listed, entry.uid, lay_out_chroot(jail))
    os.setgroups([])
    _keep_capabilities(NEEDED_CAPABILITIES.values())
    return argv


def _keep_capabilities(kept: Collection[int]) -> None:
    """What is executed next has these at the most."""
    for number in set(range(MAX_CAPABILITIES)) - set(kept):
        if _libc.prctl(PR_CAPBSET_DROP, number, 0, 0, 0) != 0 and ctypes.get_errno() != errno.EINVAL:
            raise OSError(ctypes.get_errno(), f"capability {number} cannot be given up")


def become_bootstrap(argv: list[str], descriptors: list[int]) -> None:
    """Become mmdebstrap. Never returns."""
    try:
        _place(descriptors)
        _fresh_session()
        passed = {k: v for k, v in os.environ.items() if k.lower().endswith("_proxy") or k in ("HOME", "TMPDIR")}
        os.execvpe(argv[0], argv, {"PATH": PATH, "LC_ALL": "C.UTF-8", "TZ": "UTC"} | passed)
    except BaseException as error:
        os.write(2, f"casemate launcher: {argv[0]}: {error!r}\n".encode())
    finally:
        os._exit(127)


def _limit(entry: Entry) -> None:
    """What the kernel counts per process or uid."""
    # No file longer than those it was given, or than the guest's memory, which a boot makes a file of
    longest = max(entry.jail.limits.memory_bytes, *(os.fstat(d).st_size for d in entry.descriptors))
    limits = {resource.RLIMIT_CORE: 0, resource.RLIMIT_MEMLOCK: 0, resource.RLIMIT_FSIZE: longest}
    if entry.uid is not None:  # another's uid is used by more than this
        limits[resource.RLIMIT_NPROC] = MAX_PROCESSES
    if entry.group is None:
        # All that is private and writable: the guest's memory, the VMM's own, and its threads' stacks
        limits[resource.RLIMIT_DATA] = entry.jail.limits.memory_bytes + entry.jail.limits.pids * STACK_BYTES
    for kind, value in limits.items():
        resource.setrlimit(kind, (value, value))


def _in_memory(content: bytes) -> int:
    descriptor = os.memfd_create("filter")
    os.write(descriptor, content)
    os.lseek(descriptor, 0, os.SEEK_SET)
    return descriptor


def _place(descriptors: list[int]) -> None:
    """Make *descriptors* the numbers 0, 1, 2, … and close all others."""
    above = [fcntl.fcntl(d, fcntl.F_DUPFD, len(descriptors)) for d in descriptors]  # none in another's place
    for number, descriptor in enumerate(above):
        os.dup2(descriptor, number)
    os.closerange(len(descriptors), MAX_OPEN_FILES)


def _fresh_session() -> None:
    os.setsid()
    resource.setrlimit(resource.RLIMIT_NOFILE, (MAX_OPEN_FILES, MAX_OPEN_FILES))
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGPIPE, signal.SIGCHLD):
        signal.signal(number, signal.SIG_DFL)
