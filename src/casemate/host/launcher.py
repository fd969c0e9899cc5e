"""The launcher: a small process that keeps the privilege and can only give it away.

``python -m casemate.host.launcher DESCRIPTOR UID_BASE UID_COUNT``, started by the daemon before that drops its own.
It speaks a fixed set of messages over a SOCK_SEQPACKET socket, JSON of at most 64 KiB with descriptors beside it:

    daemon → launcher                                      launcher → daemon
    {"do": "spawn", "id", "argv"}  + [2, 3, 4, …]          {"spawned": id, "pid", "uid"} | {"failed": id, "why"}
    {"do": "kill", "id"}                                   {"exited": id, "status"}
    {"do": "bootstrap", "id", "recipe"} + [disk, log]      {"exited": id, "status"}

As root it starts a VMM under a uid of its own from the range, which owns nothing, so that whatever argv a
daemon that was taken over asks for, it gains nothing by asking; the one thing run as root is mmdebstrap for a
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
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

MAX_MESSAGE_BYTES = 65_536
MAX_DESCRIPTORS = 32
FIRST_DESCRIPTOR = 3
PR_SET_PDEATHSIG = 1  # Source: linux/prctl.h
PR_SET_NO_NEW_PRIVS = 38
INFO_LIMIT_BYTES = 4096
PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_prctl = ctypes.CDLL(None, use_errno=True).prctl


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
        message, descriptors, _, _ = socket.recv_fds(self._daemon, MAX_MESSAGE_BYTES, MAX_DESCRIPTORS)
        if not message:
            return False
        key = "?"
        try:
            body = json.loads(message)
            key = str(body["id"])
            match body["do"]:
                case "spawn" if descriptors:
                    self._spawn(key, [str(word) for word in body["argv"]], descriptors)
                case "kill":
                    self._kill(key)
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

    def _spawn(self, key: str, argv: list[str], descriptors: list[int]) -> None:
        uid = self._lease_uid() if self._privileged else None
        info_read, info_write = os.pipe2(os.O_CLOEXEC)
        try:
            last = FIRST_DESCRIPTOR + len(descriptors) - 1
            argv = [str(last) if word == "@info-fd@" else word for word in argv]
            pid = os.fork()
            if pid == 0:
                os.dup2(descriptors[0], 2)
                _exec(argv, [*descriptors[1:], info_write], uid, self._uids.start - 1, jailed=True)
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

    def _kill(self, key: str) -> None:
        """The VMM itself first, so that what reports the end (bubblewrap) ends after it."""
        for child in self._children.values():
            if child.key == key:
                _kill_now(child)

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
            os.dup2(log, 1)
            os.dup2(log, 2)
            os.dup2(nothing, 0)
            _exec(argv, [], None, 0, jailed=False)
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
        for child in self._children.values():
            _kill_now(child)
        for child in list(self._children.values()):
            _, status = os.waitpid(child.pid, 0)
            del self._children[child.pid]
            self._ended(child, os.waitstatus_to_exitcode(status))


def _kill_now(child: Child) -> None:
    try:
        if child.target is not None:
            signal.pidfd_send_signal(child.target, signal.SIGKILL)
        elif child.folder is not None:
            os.killpg(child.pid, signal.SIGKILL)
        else:
            os.kill(child.pid, signal.SIGKILL)  # not reaped yet, so the number is still its
    except ProcessLookupError:
        return  # it has just ended by itself


def _exec(argv: list[str], descriptors: list[int], uid: int | None, group: int, *, jailed: bool) -> None:
    """In the child: everything up to the exec. Never returns."""
    try:
        parked = [os.dup(d) for d in descriptors]  # out of the way of the numbers they are about to get
        high = [_above(d, FIRST_DESCRIPTOR + len(parked)) for d in parked]
        for number, descriptor in enumerate(high, FIRST_DESCRIPTOR):
            os.dup2(descriptor, number)
        if jailed:
            nothing = os.open("/dev/null", os.O_RDWR)
            for number in (0, 1):
                os.dup2(nothing, number)
            resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        resource.setrlimit(resource.RLIMIT_NOFILE, (1024, 1024))
        os.closerange(FIRST_DESCRIPTOR + len(parked), 1024)
        os.setsid()
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGPIPE, signal.SIGCHLD):
            signal.signal(number, signal.SIG_DFL)
        if uid is not None:
            os.setgroups([group])  # the daemon's: bubblewrap must reach what it binds
            os.setresgid(uid, uid, uid)
            os.setresuid(uid, uid, uid)
        if jailed:
            _prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
            _prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)  # after the last uid change, which clears it
        kept = {"PATH": PATH, "LC_ALL": "C.UTF-8", "TZ": "UTC"}
        if not jailed:
            kept |= {k: v for k, v in os.environ.items() if k.lower().endswith("_proxy") or k in ("HOME", "TMPDIR")}
        os.execvpe(argv[0], argv, kept)
    except BaseException as error:
        os.write(2, f"casemate launcher: {argv[0]}: {error!r}\n".encode())
    finally:
        os._exit(127)


def _above(descriptor: int, floor: int) -> int:
    return fcntl.fcntl(descriptor, fcntl.F_DUPFD, floor)


def main() -> None:
    descriptor, uid_base, uid_count = map(int, sys.argv[1:4])
    Launcher(socket.socket(fileno=descriptor), uid_base, uid_count).run()


if __name__ == "__main__":
    main()
