"""The jail that Firecracker's own jailer makes around it, as data, and the command line. Pure.

The jailer needs root; the VMM that it becomes has a uid of its own, no capability, and sees a root on a small tmpfs
with what was given to it and nothing else. bubblewrap stands around both: the network, PID, IPC, UTS and cgroup
namespaces are its, and so is the link that ends the VMM with who started it (the jailer loses the parent-death signal
when it changes its uid; PID 1 of the namespace keeps it). The jailer itself sees that tmpfs and /proc, no host's files.
Source: Firecracker's docs/jailer.md; bwrap(1)
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from casemate.host.cgroup import NAME, Limits
from casemate.host.jail import Bind, Jail, own_source

NAMESPACES = ("pid", "net", "ipc", "uts", "cgroup")  # the jailer adds mount; a user namespace may make no device
BASE = "/jail"  # where the jailer finds the tmpfs
BINARY = "firecracker"  # a name without this word the jailer refuses
MAX_OPEN_FILES = 1024
NEEDED_CAPABILITIES = {  # the numbers' source: linux/capability.h
    "CAP_CHOWN": 0,
    "CAP_DAC_OVERRIDE": 1,  # it works on in folders that it has given to the VMM's uid
    "CAP_SETGID": 6,
    "CAP_SETUID": 7,
    "CAP_NET_ADMIN": 12,  # bubblewrap's, for the loopback device of the new namespace
    "CAP_SYS_ADMIN": 21,
    "CAP_MKNOD": 27,  # /dev/kvm
}
PLACE = re.compile(r"(/[a-z0-9][a-z0-9_-]{0,31}){1,4}")
ITS_OWN = frozenset({"dev", "run", "old_root", "sys", BINARY})  # what the jailer makes in there, as root
FILTER = "firecracker"  # beside the VMM's own filters, which begin with its guest
FILTERS = 2  # of system calls, then: ours, and in each thread one of the VMM's own
UNSAFE = ("--no-seccomp", "--seccomp-filter", "--enable-pci")


@dataclass(frozen=True, slots=True)
class Jailer:
    """All that a jailed Firecracker sees of the host, and all it may use of it; only where we are root.

    *executable* and *program* are the descriptors of the VMM's binary, which the jailer copies, and of the jailer's,
    which has to be one that root approved (host/approval.py). Paths of *binds* are seen from inside.
    """

    binds: tuple[Bind, ...]
    name: str
    limits: Limits
    executable: int
    program: int

    def __post_init__(self) -> None:
        """Raises ValueError: root lays these paths out, so they lead nowhere else, nor to where the jailer writes."""
        if not NAME.fullmatch(self.name):
            raise ValueError(f"{self.name[:80]!r} is no name for a jail")
        taken: list[str] = []
        for bind in self.binds:
            if not PLACE.fullmatch(bind.path) or bind.path.split("/")[1] in ITS_OWN:
                raise ValueError(f"{bind.path[:80]!r} is no place in a jail")
            if any(_hides(bind.path, path) or _hides(path, bind.path) for path in taken):
                raise ValueError(f"{bind.path} would hide another")
            taken.append(bind.path)

    @property
    def filter(self) -> str:
        return FILTER

    @property
    def root(self) -> str:
        """What will be its root, from the top of the tmpfs. The jailer's own rule."""
        return f"{BINARY}/{self.name}/root"

    def argv(
        self, command: Sequence[str], info_descriptor: int, filter_descriptor: int, uid: int, base: str
    ) -> list[str]:
        """bubblewrap's command line, and in it the jailer's, that runs Firecracker with the arguments *command*.

        *info_descriptor* is where bubblewrap writes the pid of the namespace's first process, whose one child
        becomes the VMM, *filter_descriptor* where it reads the filter; *base* is the tmpfs.
        Raises ValueError for arguments that would take a defence away.
        """
        if bad := [word for word in command if word.startswith(UNSAFE)]:
            raise ValueError(f"{bad[0][:80]!r} is not for a jailed VMM")
        argv = ["bwrap", *(f"--unshare-{name}" for name in NAMESPACES)]
        argv += ["--die-with-parent", "--clearenv"]
        argv += ["--info-fd", str(info_descriptor), "--seccomp", str(filter_descriptor)]
        argv += ["--hostname", "casemate", "--dev-bind", base, BASE, "--proc", "/proc", "--chdir", "/", "--"]
        argv += [own_source(self.program), "--id", self.name, "--exec-file", f"{BASE}/bin/{BINARY}"]
        argv += ["--uid", str(uid), "--gid", str(uid), "--chroot-base-dir", BASE]
        argv += ["--resource-limit", f"no-file={MAX_OPEN_FILES}", "--", *command]
        return argv

    def to_json(self) -> dict[str, Any]:
        binds = [[bind.descriptor, bind.path, bind.writable] for bind in self.binds]
        numbers = {"executable": self.executable, "program": self.program}
        return {"kind": "jailer", "binds": binds, "name": self.name, "limits": asdict(self.limits)} | numbers

    @classmethod
    def from_json(cls, body: Any) -> Jailer:
        """Raises ValueError, KeyError or TypeError for anything ``to_json`` does not write."""
        binds = tuple(Bind(int(number), str(path), bool(writable)) for number, path, writable in body["binds"])
        limits = Limits(**{name: int(value) for name, value in body["limits"].items()})
        return cls(binds, str(body["name"]), limits, int(body["executable"]), int(body["program"]))


def _hides(path: str, other: str) -> bool:
    return f"{other}/".startswith(f"{path}/")


def jail_from_json(body: Any) -> Jail | Jailer:
    """Either kind. Raises ValueError, KeyError or TypeError."""
    match body["kind"]:
        case "jailer":
            return Jailer.from_json(body)
        case "bubblewrap":
            return Jail.from_json(body)
        case kind:
            raise ValueError(f"{str(kind)[:80]!r} is no kind of jail")
