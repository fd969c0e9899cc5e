"""The launcher: a small process that keeps the privilege and can only give it away.

``python -m casemate.host.launcher DESCRIPTOR UID_BASE UID_COUNT GROUP strict|weak``, started by the daemon before that
drops its own. It speaks a fixed set of messages over a SOCK_SEQPACKET socket, JSON of at most 64 KiB with descriptors
beside it:

    daemon → launcher                                              launcher → daemon
    {"do": "spawn", "id", "jail", "command"} + [2, 3, 4, …]        {"spawned": id, "pid", "uid"} |
                                                                   {"failed": id, "why", "hint"}
    {"do": "signal", "id", "signal"}                               {"exited": id, "status", "out_of_memory"}
    {"do": "attest", "id"} + [its memory]                          {"attested": id, "account"} |
                                                                   {"unattested": id, "why"}
    {"do": "memory", "id"} + [its memory, a socket]                {"mapped": id, "start", "bytes"} |
                                                                   {"unmapped": id, "why"}
    {"do": "sweep", "id"}                                          {"swept": id, "removed": [name, …]}
    {"do": "bootstrap", "id", "recipe"} + [disk, log]              {"exited": id, "status", "out_of_memory"}

A command runs in a jail or not at all, in a control group of its own below GROUP (without one only if *weak*), and as
root under a uid of its own from the range, which owns nothing: a daemon that was taken over gains nothing by asking.
Firecracker's jailer is root until it has made that jail: only one that root approved is run (host/approval.py).
A VMM's memory is handed out (/proc/PID/mem and pagemap, over the socket given) once it is in its jail for good: it
obeys the daemon anyway, and what bounds it is the jail, not its code.
The one thing run as root is mmdebstrap for a recipe we come with, known by name. An exit is told when the group
is empty and gone. When the daemon's end closes, everything it started is killed.
Single-threaded: the parent-death signal belongs to the thread that forks. Few imports: it forks often.
"""

from __future__ import annotations

import array
import json
import os
import select
import signal
import socket
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from casemate.host import seccomp
from casemate.host.account import Area, Reader, areas_of, bare
from casemate.host.approval import Approved
from casemate.host.behind import find_vmm
from casemate.host.cgroup import Group, Groups, Trees
from casemate.host.entry import Entry, become_bootstrap, enter
from casemate.host.jail import Jail
from casemate.host.jailer import FILTERS, Jailer, jail_from_json
from casemate.host.leases import Leases

MAX_MESSAGE_BYTES = 65_536
MAX_DESCRIPTORS = 32
INFO_LIMIT_BYTES = 4096
LEARN_S = 1.0  # how long to wait, at the end, for pids that bubblewrap is about to tell
SIGNALS = {"KILL": signal.SIGKILL, "STOP": signal.SIGSTOP, "CONT": signal.SIGCONT}
POLL_STARTING_MS = 1  # nobody tells when the jailer has become the VMM
STARTING_S = 10.0
POLL_LEAVING_MS = 10  # nobody tells when the last process of a group is gone
LEAVING_S = 5.0
SWEPT_AT_ONCE = 500  # names that surely fit into one message
WEAK_HINT = "make /sys/fs/cgroup writable for the daemon, or set allow_weak_jail = true"


@dataclass
class Child:
    """One process we started. *target* is the VMM inside, once its pid is known; before, what it starts from."""

    key: str
    pid: int
    info: int | None = None
    uid: int | None = None
    lease: int | None = None  # what holds the uid
    group: Group | None = None
    name: str | None = None
    filters: int = 0  # it is under so many, once it is a VMM that may run a guest
    behind: bool = False  # the pid that bubblewrap tells is not the VMM's, but that of its parent
    first: int | None = None  # that pid
    until: float = 0.0  # when it has to be the VMM
    target: int | None = None  # a pidfd: a number could be somebody else's by the time we use it
    inside: int | None = None  # the VMM's pid
    told: bytes = b""
    out_of_memory: bool = False
    folder: tempfile.TemporaryDirectory[str] | None = None
    disk: int | None = None


class Refused(Exception):
    """A message this launcher does not act on."""

    def __init__(self, why: str, hint: str = "") -> None:
        super().__init__(why)
        self.hint = hint


class Launcher:
    def __init__(self, daemon: socket.socket, uid_base: int, uid_count: int, groups: Groups, *, weak: bool) -> None:
        self._daemon = daemon
        self._privileged = os.geteuid() == 0
        self._leases = Leases(uid_base, uid_count) if self._privileged else None
        self._groups = groups
        self._weak = weak
        self._reader = Reader(groups.trees)
        self._approved = Approved()
        self._children: dict[int, Child] = {}
        self._leaving: list[tuple[Child, int]] = []  # ended, with this status; something is left in their groups
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
            for descriptor, _ in self._poll.poll(self._patience_ms()):
                if descriptor == wake_read:
                    os.read(wake_read, 4096)
                    self._reap()
                elif descriptor == self._daemon.fileno():
                    serving = self._serve()
                else:
                    self._informed(descriptor)
            self._look_behind()
            self._see_off()
        self._end_all()

    def _patience_ms(self) -> int | None:
        if any(child.first is not None for child in self._children.values()):
            return POLL_STARTING_MS
        return POLL_LEAVING_MS if self._leaving else None

    def _serve(self) -> bool:
        try:
            message, descriptors, _, _ = socket.recv_fds(self._daemon, MAX_MESSAGE_BYTES, MAX_DESCRIPTORS)
        except ConnectionResetError:  # it ended before it had read all we told
            return False
        if not message:
            return False
        key = "?"
        try:
            body = json.loads(message)
            key = str(body["id"])
            match body["do"]:
                case "spawn" if descriptors:
                    self._spawn(key, jail_from_json(body["jail"]), [str(w) for w in body["command"]], descriptors)
                case "signal":
                    self._signal(key, SIGNALS[body["signal"]])
                case "attest" if len(descriptors) == 1:
                    self._attest(key, descriptors[0])
                case "memory" if len(descriptors) == 2:
                    self._hand_memory(key, *descriptors)
                case "sweep":
                    self._sweep(key)
                case "bootstrap":
                    self._bootstrap(key, str(body["recipe"]), descriptors)
                case _:
                    raise Refused("no such message")
        except (Refused, OSError, ValueError, KeyError, TypeError) as error:
            self._tell({"failed": key, "why": str(error) or repr(error), "hint": getattr(error, "hint", "")})
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

    def _spawn(self, key: str, jail: Jail | Jailer, command: list[str], descriptors: list[int]) -> None:
        if isinstance(jail, Jailer):
            descriptors = self._approve(jail, descriptors)
        if jail.filter is not None:
            seccomp.compiled(jail.filter)  # here, so that no child has to
        group = self._new_group(jail)
        uid = lease = info_read = None
        try:
            if self._leases is not None:
                uid, lease = self._lease(self._leases)
            info_read, info_write = os.pipe2(os.O_CLOEXEC)
            os.set_blocking(info_read, False)
            try:
                entry = Entry(jail, command, descriptors, info_write, uid, group, os.getpid())
                pid = os.fork() if group is None else group.fork()
                if pid == 0:
                    enter(entry)
            finally:
                os.close(info_write)
        except BaseException:
            _give_back(lease, info_read)
            if group is not None:
                group.remove()
            raise
        behind = isinstance(jail, Jailer)
        filters = FILTERS if isinstance(jail, Jailer) else int(jail.filter is not None)
        child = Child(key, pid, info_read, uid, lease, group, jail.name, filters=filters, behind=behind)
        self._children[pid] = child
        self._poll.register(info_read, select.POLLIN)

    def _approve(self, jail: Jailer, descriptors: list[int]) -> list[int]:
        """*descriptors* with a program in the jailer's place that may run as root. Raises Refused, NotApproved."""
        if not self._privileged:
            raise Refused("only root can have Firecracker's jailer make a jail")
        if not {jail.executable, jail.program, *(bind.descriptor for bind in jail.binds)} <= set(
            range(2, 2 + len(descriptors))
        ):
            raise Refused("a descriptor that was not given")
        program = self._approved.copy(descriptors[jail.program - 2])
        return [program if number == jail.program else given for number, given in enumerate(descriptors, 2)]

    def _new_group(self, jail: Jail | Jailer) -> Group | None:
        """None where the host gives none and that is allowed."""
        self._groups.named(jail.name)
        if any(child.name == jail.name for child in self._living()):
            raise Refused(f"{jail.name} is running")
        try:
            return self._groups.create(jail.name, jail.limits)
        except OSError as error:
            if not self._weak:
                raise Refused(f"its control group cannot be made: {error}", WEAK_HINT) from error
            return None

    def _living(self) -> list[Child]:
        return [*self._children.values(), *(child for child, _ in self._leaving)]

    def _lease(self, leases: Leases) -> tuple[int, int]:
        found = leases.take({child.uid for child in self._living() if child.uid is not None})
        if found is None:
            raise Refused("every uid of the range is in use", "set uid_count higher, or end sandboxes")
        return found

    def _informed(self, descriptor: int) -> None:
        """bubblewrap has said which pid the VMM has, or has ended without saying."""
        child = next((c for c in self._children.values() if c.info == descriptor), None)
        if child is None:
            return  # its end was noticed in the same moment, a line before
        try:
            piece = os.read(descriptor, INFO_LIMIT_BYTES)
        except BlockingIOError:
            return  # that one's; this child has the number since
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
        if child.behind:
            child.first, child.until = pid, time.monotonic() + STARTING_S
        else:
            self._found(child, pid)

    def _look_behind(self) -> None:
        """See which jailers have become VMMs; end those that take too long. Those that fail end by themselves."""
        for child in self._children.values():
            if child.first is None or child.uid is None:
                continue
            if (pid := find_vmm(child.first, child.uid)) is None:
                if time.monotonic() > child.until:
                    _send(child, signal.SIGKILL)
                continue
            try:
                target = os.pidfd_open(pid)
            except ProcessLookupError:
                continue  # its exit is what gets told
            if find_vmm(child.first, child.uid) != pid:  # else the number is another's by now
                os.close(target)
                continue
            _give_back(child.target)
            child.target, child.first = target, None
            self._found(child, pid)

    def _found(self, child: Child, pid: int) -> None:
        child.inside = pid
        self._tell({"spawned": child.key, "pid": pid, "uid": child.uid})

    def _signal(self, key: str, number: signal.Signals) -> None:
        """To the VMM itself, so that what reports the end (bubblewrap) ends after it."""
        for child in self._children.values():
            if child.key == key:
                _send(child, number)

    def _attest(self, key: str, memory: int) -> None:
        """Tell the kernel's account of the VMM inside."""
        child = next((c for c in self._children.values() if c.key == key and c.inside is not None), None)
        try:
            if child is None or child.target is None or child.inside is None:
                raise Refused("it does not run")
            account = self._reader.read(child.inside, memory)
            signal.pidfd_send_signal(child.target, 0)  # it lives, so the pid was its all the time
        except (Refused, OSError, ValueError, KeyError) as error:
            self._tell({"unattested": key, "why": str(error) or repr(error)})
        else:
            self._tell({"attested": key, "account": account.to_json()})

    def _hand_memory(self, key: str, memory: int, over: int) -> None:
        """Send /proc/PID/mem and pagemap of the VMM inside, when it has mapped *memory* as a clone does."""
        child = next((c for c in self._children.values() if c.key == key and c.inside is not None), None)
        opened: list[int] = []
        try:
            if child is None or child.target is None or child.inside is None:
                raise Refused("it does not run")
            process = Path(f"/proc/{child.inside}")
            if not bare(process, filters=child.filters):  # bubblewrap still, with rights that a VMM has not
                raise Refused("it is not in its jail yet")
            start, size = _one_private(areas_of(process, memory))
            opened += [os.open(process / "mem", os.O_RDWR | os.O_CLOEXEC)]
            opened += [os.open(process / "pagemap", os.O_RDONLY | os.O_CLOEXEC)]
            signal.pidfd_send_signal(child.target, 0)  # it lives, so the pid was its all the time
            with socket.socket(fileno=os.dup(over)) as channel:
                beside = (socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", opened))
                channel.sendmsg([b"m"], [beside], socket.MSG_DONTWAIT)  # send_fds forgets its flags
        except (Refused, OSError, ValueError, KeyError) as error:
            self._tell({"unmapped": key, "why": str(error) or repr(error)})
        else:
            self._tell({"mapped": key, "start": start, "bytes": size})
        finally:
            _give_back(*opened)

    def _sweep(self, key: str) -> None:
        """Kill and remove what groups of this home no child of ours has: a killed launcher's."""
        ours = {child.name for child in self._living()}
        left = [name for name in self._groups.leftovers() if name not in ours][:SWEPT_AT_ONCE]
        removed: list[str] = []
        until = time.monotonic() + LEAVING_S
        for name in left:
            group = self._groups.named(name)
            group.kill()
            while not (gone := group.remove()) and time.monotonic() < until:
                time.sleep(POLL_LEAVING_MS / 1000)
            removed += [name] if gone else []
        self._groups.adopt()
        self._tell({"swept": key, "removed": removed})

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
            become_bootstrap(argv, [nothing, log, log])
        os.close(nothing)
        self._children[pid] = Child(key, pid, folder=folder, disk=os.dup(disk))

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
        _give_back(child.info, child.target)
        if child.folder is not None:
            status = self._deliver(child, status)
        child.out_of_memory = child.group is not None and child.group.ran_out_of_memory()
        self._leaving.append((child, status))
        self._see_off()

    def _see_off(self) -> None:
        """Tell the end of those in whose groups nothing is left; the others are killed, again if need be.

        One that does not go is never told of: the daemon's deadline makes it a leak.
        """
        staying = []
        for child, status in self._leaving:
            if child.group is not None and not _emptied(child.group):
                staying.append((child, status))
                continue
            _give_back(child.lease)
            self._tell({"exited": child.key, "status": status, "out_of_memory": child.out_of_memory})
        self._leaving = staying

    def _end_all(self) -> None:
        self._learn_targets()
        for child in self._children.values():
            _send(child, signal.SIGKILL)
        for child in list(self._children.values()):
            _, status = os.waitpid(child.pid, 0)
            del self._children[child.pid]
            self._ended(child, os.waitstatus_to_exitcode(status))
        until = time.monotonic() + LEAVING_S
        while self._leaving and time.monotonic() < until:
            time.sleep(POLL_LEAVING_MS / 1000)
            self._see_off()
        self._groups.close()

    def _learn_targets(self) -> None:
        """Wait for the pids: a bubblewrap that is killed first can leave the process it has just made."""
        deadline = time.monotonic() + LEARN_S
        for child in self._children.values():
            while child.info is not None and (left_s := deadline - time.monotonic()) > 0:
                if select.select([child.info], [], [], left_s)[0]:
                    self._informed(child.info)


def _one_private(areas: list[Area]) -> tuple[int, int]:
    """Begin and length of a file's whole private mapping, which the kernel may have in several pieces."""
    if not areas:
        raise Refused("it has not mapped that file")
    begin = end = areas[0].begin
    for area in areas:
        if area.begin != end or area.offset != end - begin or area.access[1::2] != "wp":
            raise Refused("it has not mapped that file once, from its beginning, as a clone does")
        end = area.end
    return begin, end - begin


def _emptied(group: Group) -> bool:
    """The last step of the ladder: whatever is still in it is killed. True when it is gone."""
    try:
        if group.remove():
            return True
        group.kill()
    except OSError as error:
        print(f"casemate launcher: {group.folders[0]}: {error}", file=sys.stderr)
    return False


def _give_back(*descriptors: int | None) -> None:
    for descriptor in descriptors:
        if descriptor is not None:
            os.close(descriptor)


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


def main() -> None:
    descriptor, uid_base, uid_count = map(int, sys.argv[1:4])
    groups = Groups(Trees.find(Path("/proc/self/mountinfo").read_text()), sys.argv[4])
    weak = sys.argv[5] == "weak"
    Launcher(socket.socket(fileno=descriptor), uid_base, uid_count, groups, weak=weak).run()


if __name__ == "__main__":
    main()
