"""The launcher: a small process that keeps the privilege and can only give it away.

``python -m casemate.host.launcher DESCRIPTOR UID_BASE UID_COUNT``, started by the daemon before that drops its own.
It speaks a fixed set of messages over a SOCK_SEQPACKET socket, JSON of at most 64 KiB with descriptors beside it:

    daemon → launcher                                              launcher → daemon
    {"do": "spawn", "id", "jail", "command"} + [2, 3, 4, …]        {"spawned": id, "pid", "uid"} | {"failed": id, "why"}
    {"do": "signal", "id", "signal"}                               {"exited": id, "status"}
    {"do": "bootstrap", "id", "recipe"} + [disk, log]              {"exited": id, "status"}

A command runs in a jail or not at all, and as root under a uid of its own from the range, which owns nothing:
a daemon that was taken over gains nothing by asking. The one thing run as root is mmdebstrap for a
recipe we come with, known by name. When the daemon's end closes, everything it started is killed.
Single-threaded: the parent-death signal belongs to the thread that forks. Few imports: it forks often.
"""

from __future__ import annotations

import ctypes
import fcntl
import json
import os
import resource
import select
import signal
import socket
import stat
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from casemate.host.jail import FIRST_DESCRIPTOR, Jail

MAX_MESSAGE_BYTES = 65_536
MAX_DESCRIPTORS = 32
PR_SET_PDEATHSIG = 1  # Source: linux/prctl.h
PR_SET_NO_NEW_PRIVS = 38
CLONE_NEWNS = 0x00020000  # Source: linux/sched.h
MS_NOSUID, MS_NODEV, MS_REC, MS_PRIVATE = 2, 4, 16384, 1 << 18  # Source: linux/mount.h
OPEN_TREE, MOVE_MOUNT = 428, 429  # the numbers on every architecture. Source: asm-generic/unistd.h
OPEN_TREE_CLONE, AT_EMPTY_PATH, MOVE_MOUNT_F_EMPTY_PATH = 1, 0x1000, 4  # Source: linux/mount.h, linux/fcntl.h
INFO_LIMIT_BYTES = 4096
MAX_OPEN_FILES = 1024
MAX_PROCESSES = 512  # of one VMM's uid, threads included
LEARN_S = 1.0  # how long to wait, at the end, for pids that bubblewrap is about to tell
VMM_OOM_SCORE = 500  # when memory runs out, the kernel takes a VMM and not the daemon
SIGNALS = {"KILL": signal.SIGKILL, "STOP": signal.SIGSTOP, "CONT": signal.SIGCONT}
# Where a VMM's files are laid out for bubblewrap, in a mount namespace of its own.
COUNTER = "/tmp"  # noqa: S108 - hides the shared one
PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_libc = ctypes.CDLL(None, use_errno=True)


@dataclass
class Child:
    """One process we started. *target* is the VMM inside, once bubblewrap has told its pid."""

    key: str
    pid: int
    uid: int | None
    info: int | None
    target: int | None = None  # a pidfd: a number could be somebody else's by the time we use it
    told: bytes = b""
    folder: tempfile.TemporaryDirectory[str] | None = None
    disk: int | None = None


class Refused(Exception):
    """A message this launcher does not act on."""


class Launcher:
    def __init__(self, daemon: socket.socket, uid_base: int, uid_count: int) -> None:
        self._daemon = daemon
        self._uids = range(uid_base + 1, uid_base + uid_count)  # the base itself is the daemon's
        self._next_uid = 0
        self._privileged = os.geteuid() == 0
        self._children: dict[int, Child] = {}
        self._poll = select.poll()

    def run(self) -> None:
        """Serve until the daemon's end closes; then kill and wait for everything started here."""
        wake_read, wake_write = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        signal.set_wakeup_fd(wake_write)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        for ignored in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGPIPE):
            signal.signal(ignored, signal.SIG_IGN)  # the daemon decides when to end, and we end with it
        self._poll.register(self._daemon, select.POLLIN)
        self._poll.register(wake_read, select.POLLIN)
        serving = True
        while serving:
            for descriptor, _ in self._poll.poll():
                if descriptor == wake_read:
                    os.read(wake_read, 4096)
                    self._reap()
                elif descriptor == self._daemon.fileno():
                    serving = self._serve()
                else:
                    self._informed(descriptor)
        self._end_all()

    def _serve(self) -> bool:
        try:
            message, descriptors, _, _ = socket.recv_fds(self._daemon, MAX_MESSAGE_BYTES, MAX_DESCRIPTORS)
        except ConnectionResetError:  # it was killed before it had read all we told it
            return False
        if not message:
            return False
        key = "?"
        try:
            body = json.loads(message)
            key = str(body["id"])
            match body["do"]:
                case "spawn" if descriptors:
                    self._spawn(key, Jail.from_json(body["jail"]), [str(w) for w in body["command"]], descriptors)
                case "signal":
                    self._signal(key, SIGNALS[body["signal"]])
                case "bootstrap":
                    self._bootstrap(key, str(body["recipe"]), descriptors)
                case _:
                    raise Refused("no such message")
        except (Refused, OSError, ValueError, KeyError, TypeError) as error:
            self._tell({"failed": key, "why": repr(error)})
        finally:
            for descriptor in descriptors:
                os.close(descriptor)
        return True

    def _tell(self, body: dict[str, object]) -> None:
        try:
            self._daemon.send(json.dumps(body).encode())
        except (BrokenPipeError, ConnectionResetError):
            return  # the daemon is gone: the next receive says so and everything ends

    # ----------------------------------------------------------------------- machines

    def _spawn(self, key: str, jail: Jail, command: list[str], descriptors: list[int]) -> None:
        uid = self._lease_uid() if self._privileged else None
        info_read, info_write = os.pipe2(os.O_CLOEXEC)
        try:
            parent, pid = os.getpid(), os.fork()
            if pid == 0:
                _enter(jail, command, [*descriptors, info_write], uid, parent)
        finally:
            os.close(info_write)
        self._children[pid] = Child(key, pid, uid, info_read)
        self._poll.register(info_read, select.POLLIN)

    def _lease_uid(self) -> int:
        taken = {child.uid for child in self._children.values()}
        for _ in range(len(self._uids)):
            uid = self._uids[self._next_uid % len(self._uids)]
            self._next_uid += 1  # a uid is used again as late as possible
            if uid not in taken:
                return uid
        raise Refused("every uid of the range is in use")

    def _informed(self, descriptor: int) -> None:
        """bubblewrap has said which pid the VMM has, or has ended without saying."""
        child = next(c for c in self._children.values() if c.info == descriptor)
        piece = os.read(descriptor, INFO_LIMIT_BYTES)
        child.told = (child.told + piece)[:INFO_LIMIT_BYTES]
        if piece and not child.told.rstrip().endswith(b"}"):
            return
        self._poll.unregister(descriptor)
        os.close(descriptor)
        child.info = None
        try:
            pid = int(json.loads(child.told)["child-pid"])
            child.target = os.pidfd_open(pid)
        except (ValueError, KeyError, TypeError, ProcessLookupError):
            return  # it failed; its exit is what gets told
        self._tell({"spawned": child.key, "pid": pid, "uid": child.uid})

    def _signal(self, key: str, number: signal.Signals) -> None:
        """To the VMM itself, so that what reports the end (bubblewrap) ends after it."""
        for child in self._children.values():
            if child.key == key:
                _send(child, number)

    # ------------------------------------------------------------------- root disks

    def _bootstrap(self, key: str, recipe_name: str, descriptors: list[int]) -> None:
        from casemate.images.rootfs import RECIPES, bootstrap_argv

        recipe = RECIPES.get(recipe_name)
        if recipe is None or len(descriptors) != 2:
            raise Refused("no such recipe")
        folder = tempfile.TemporaryDirectory(prefix="casemate-root-", dir="/var/tmp")
        if not self._privileged:
            os.chmod(folder.name, 0o755)  # mmdebstrap's user namespace has another uid
        argv = bootstrap_argv(recipe, Path(folder.name) / "disk", as_root=self._privileged)
        disk, log = descriptors
        nothing = os.open("/dev/null", os.O_RDONLY | os.O_CLOEXEC)
        pid = os.fork()
        if pid == 0:
            _bootstrap(argv, [nothing, log, log])
        os.close(nothing)
        self._children[pid] = Child(key, pid, None, None, folder=folder, disk=os.dup(disk))

    def _deliver(self, child: Child, status: int) -> int:
        """Hand the finished disk over through the daemon's own descriptor; we write no path of its choice."""
        assert child.folder is not None
        assert child.disk is not None
        try:
            if status == 0:
                with open(Path(child.folder.name) / "disk", "rb") as made:
                    while os.sendfile(child.disk, made.fileno(), None, 1 << 24):
                        pass
        except OSError as error:
            status = error.errno or 1
        finally:
            os.close(child.disk)
            child.folder.cleanup()
        return status

    # ------------------------------------------------------------------------- ends

    def _reap(self) -> None:
        while self._children:
            pid, status = os.waitpid(-1, os.WNOHANG)  # every child is ours and in the table
            if pid == 0:
                return
            self._ended(self._children.pop(pid), os.waitstatus_to_exitcode(status))

    def _ended(self, child: Child, status: int) -> None:
        if child.info is not None:
            self._poll.unregister(child.info)
            os.close(child.info)
        if child.target is not None:
            os.close(child.target)
        if child.folder is not None:
            status = self._deliver(child, status)
        self._tell({"exited": child.key, "status": status})

    def _end_all(self) -> None:
        self._learn_targets()
        for child in self._children.values():
            _send(child, signal.SIGKILL)
        for child in list(self._children.values()):
            _, status = os.waitpid(child.pid, 0)
            del self._children[child.pid]
            self._ended(child, os.waitstatus_to_exitcode(status))

    def _learn_targets(self) -> None:
        """Wait for the pids: a bubblewrap that is killed first can leave the process it has just made."""
        deadline = time.monotonic() + LEARN_S
        for child in self._children.values():
            while child.info is not None and (left_s := deadline - time.monotonic()) > 0:
                if select.select([child.info], [], [], left_s)[0]:
                    self._informed(child.info)


def _send(child: Child, number: signal.Signals) -> None:
    try:
        if child.target is not None:
            signal.pidfd_send_signal(child.target, number)
        elif child.folder is not None:
            os.killpg(child.pid, number)
        else:
            os.kill(child.pid, number)  # not reaped yet, so the number is still its
    except ProcessLookupError:
        return  # it has just ended by itself


# --------------------------------------------------------- in the child, up to the exec


def _enter(jail: Jail, command: list[str], descriptors: list[int], uid: int | None, parent: int) -> None:
    """Become the VMM. Never returns."""
    try:
        nothing = os.open("/dev/null", os.O_RDWR)
        info = FIRST_DESCRIPTOR + len(descriptors) - 2
        _place([nothing, nothing, *descriptors])
        _fresh_session()
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        with open("/proc/self/oom_score_adj", "w") as score:
            score.write(str(VMM_OOM_SCORE))
        if uid is None:
            argv = jail.argv(command, info)
        else:
            argv = jail.argv(command, info, _lay_out(jail))
            resource.setrlimit(resource.RLIMIT_NPROC, (MAX_PROCESSES, MAX_PROCESSES))
            os.setgroups([])
            os.setresgid(uid, uid, uid)
            os.setresuid(uid, uid, uid)
        _libc.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
        _libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)  # after the last uid change, which clears it
        if os.getppid() == parent:  # else it died before its death would have been noticed
            os.execvpe(argv[0], argv, {"PATH": PATH, "LC_ALL": "C.UTF-8"})
    except BaseException as error:
        os.write(2, f"casemate launcher: {error!r}\n".encode())
    finally:
        os._exit(127)


def _bootstrap(argv: list[str], descriptors: list[int]) -> None:
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


def main() -> None:
    descriptor, uid_base, uid_count = map(int, sys.argv[1:4])
    Launcher(socket.socket(fileno=descriptor), uid_base, uid_count).run()


if __name__ == "__main__":
    main()
