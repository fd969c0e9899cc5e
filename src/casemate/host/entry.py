"""In a child of the launcher, between fork and exec: how it becomes a VMM in its jail, or mmdebstrap.

In this order: its descriptors, a session and limits of its own, its control group, the files of its jail, its uid,
its filter; what cannot be taken on ends it. Nothing here returns.
"""

from __future__ import annotations

import ctypes
import fcntl
import os
import resource
import signal
import stat
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from casemate.host import seccomp
from casemate.host.cgroup import Group
from casemate.host.jail import Jail

PR_SET_PDEATHSIG = 1  # Source: linux/prctl.h
PR_SET_NO_NEW_PRIVS = 38
PR_SET_THP_DISABLE = 41
CLONE_NEWNS = 0x00020000  # Source: linux/sched.h
MS_NOSUID, MS_NODEV, MS_REC, MS_PRIVATE = 2, 4, 16384, 1 << 18  # Source: linux/mount.h
OPEN_TREE, MOVE_MOUNT = 428, 429  # the numbers on every architecture. Source: asm-generic/unistd.h
OPEN_TREE_CLONE, AT_EMPTY_PATH, MOVE_MOUNT_F_EMPTY_PATH = 1, 0x1000, 4  # Source: linux/mount.h, linux/fcntl.h
MAX_OPEN_FILES = 1024
MAX_PROCESSES = 512  # of one VMM's uid, threads included
STACK_BYTES = 8 << 20  # of a thread
VMM_OOM_SCORE = 500  # when memory runs out, the kernel takes a VMM and not the daemon
COUNTER = "/tmp"  # noqa: S108 - where a VMM's files are laid out for bubblewrap, in a mount namespace of its own
PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_libc = ctypes.CDLL(None, use_errno=True)


@dataclass(frozen=True, slots=True)
class Entry:
    """What a child becomes. *group* is None where the host has none to give and that is allowed."""

    jail: Jail
    command: Sequence[str]
    descriptors: Sequence[int]  # its 2, 3, 4, …
    info: int  # bubblewrap says here which pid the command has
    uid: int | None
    group: Group | None
    parent: int


def enter(entry: Entry) -> None:
    """Become the VMM. Never returns."""
    try:
        nothing = os.open("/dev/null", os.O_RDWR)
        given = [nothing, nothing, *entry.descriptors, entry.info]
        info, listed = len(given) - 1, None
        if entry.jail.filter is not None:
            given.append(_in_memory(seccomp.compiled(entry.jail.filter)))
            listed = info + 1
        if entry.group is not None:
            entry.group.enter()
        _limit(entry)
        _place(given)
        _fresh_session()
        with open("/proc/self/oom_score_adj", "w") as score:
            score.write(str(VMM_OOM_SCORE))
        source = {} if entry.uid is None else {"source": _lay_out(entry.jail)}
        argv = entry.jail.argv(entry.command, info, filter_descriptor=listed, **source)
        if entry.uid is not None:
            os.setgroups([])
            os.setresgid(entry.uid, entry.uid, entry.uid)
            os.setresuid(entry.uid, entry.uid, entry.uid)
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


def _lay_out(jail: Jail) -> Callable[[int], str]:
    """Put the files behind the descriptors where the VMM's uid can name them, in a mount namespace of our own.

    bubblewrap resolves a bind's source to a path, and the folders above our files are closed to that uid.
    The mounts are cloned first: the kernel refuses to bind from the namespace that was left.
    """
    clones = {bind.descriptor: _clone_mount(bind.descriptor) for bind in jail.binds}
    if _libc.unshare(CLONE_NEWNS) != 0:
        raise OSError(ctypes.get_errno(), "unshare")
    _mount(None, "/", None, MS_REC | MS_PRIVATE)
    _mount("tmpfs", COUNTER, "tmpfs", MS_NOSUID | MS_NODEV, "mode=0755,size=64k")
    for descriptor, clone in clones.items():
        place = f"{COUNTER}/{descriptor}"
        if stat.S_ISDIR(os.fstat(clone).st_mode):
            os.mkdir(place, 0o755)
        else:
            os.close(os.open(place, os.O_CREAT | os.O_WRONLY, 0o444))
        if _libc.syscall(MOVE_MOUNT, clone, b"", -1, place.encode(), MOVE_MOUNT_F_EMPTY_PATH) != 0:
            raise OSError(ctypes.get_errno(), f"move_mount to {place}")
        os.close(clone)
    return lambda descriptor: f"{COUNTER}/{descriptor}"


def _clone_mount(descriptor: int) -> int:
    """A mount of its own, not in the tree yet, of the file behind *descriptor*. Source: open_tree(2)"""
    clone = _libc.syscall(OPEN_TREE, descriptor, b"", OPEN_TREE_CLONE | AT_EMPTY_PATH | os.O_CLOEXEC)
    if clone < 0:
        raise OSError(ctypes.get_errno(), f"open_tree of descriptor {descriptor}")
    return int(clone)


def _mount(source: str | None, target: str, kind: str | None, flags: int, options: str | None = None) -> None:
    words = [word.encode() if word is not None else None for word in (source, target, kind)]
    if _libc.mount(*words, ctypes.c_ulong(flags), options.encode() if options else None) != 0:
        raise OSError(ctypes.get_errno(), f"mount on {target}")
