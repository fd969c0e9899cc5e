"""The jail around a VMM, as data, and its command line. Pure.

bubblewrap makes it: empty network, mount, PID, IPC, UTS, cgroup and user namespaces, no capability,
``no_new_privs``, a filter of system calls. Its root is a read-only tmpfs with the VMM's own closure (binary,
libraries, firmware) at /usr and the files of one sandbox; what the VMM may write it is given as a descriptor.
The launcher puts it into a control group of its own first. Source: bwrap(1)
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from casemate.host.cgroup import Limits

NAMESPACES = ("user", "ipc", "pid", "net", "uts", "cgroup")  # each one demanded; mount comes by itself
FIRST_DESCRIPTOR = 3
DEVICES = ("/dev/kvm",)  # all that a jail may have


@dataclass(frozen=True, slots=True)
class Bind:
    """The open file or folder *descriptor* appears at *path* inside."""

    descriptor: int
    path: str
    writable: bool = False


def own_source(what: int | str) -> str:
    """The source of a bind (of a descriptor, or a device) for who may itself pass through the folders above it."""
    return what if isinstance(what, str) else f"/proc/self/fd/{what}"


@dataclass(frozen=True, slots=True)
class Jail:
    """All that a jailed process sees of the host, and all it may use of it.

    *name* is its control group's, unique among those of one home. *filter* is one of the lists of system calls we
    come with; without one the process has but its own. *devices* are there, and are the process' own where root makes
    the jail. With *output* what it says goes where its errors go.
    """

    binds: tuple[Bind, ...]
    name: str
    limits: Limits
    filter: str | None = None
    devices: tuple[str, ...] = ()
    output: bool = False

    def __post_init__(self) -> None:
        if unknown := set(self.devices) - set(DEVICES):
            raise ValueError(f"no jail has {sorted(unknown)[0][:80]!r}")

    def argv(
        self,
        command: Sequence[str],
        info_descriptor: int,
        source: Callable[[int | str], str] = own_source,
        filter_descriptor: int | None = None,
    ) -> list[str]:
        """bubblewrap's command line that runs *command* as the jail's PID 1.

        *info_descriptor* is where it writes the pid; *source* names the file behind a descriptor, or the device;
        *filter_descriptor* is where it reads the compiled filter, which it installs as the last thing it does.
        """
        argv = ["bwrap", *(f"--unshare-{name}" for name in NAMESPACES)]
        argv += ["--die-with-parent", "--as-pid-1", "--new-session", "--cap-drop", "ALL"]
        argv += ["--clearenv", "--setenv", "LC_ALL", "C.UTF-8", "--info-fd", str(info_descriptor)]
        if filter_descriptor is not None:
            argv += ["--seccomp", str(filter_descriptor)]
        for bind in self.binds:
            argv += ["--bind" if bind.writable else "--ro-bind", source(bind.descriptor), bind.path]
        for device in self.devices:
            argv += ["--dev-bind", source(device), device]
        for link in ("lib", "lib64", "bin"):
            argv += ["--symlink", f"usr/{link}", f"/{link}"]
        argv += ["--remount-ro", "/", "--chdir", "/", "--hostname", "casemate", "--"]
        return argv + list(command)

    def to_json(self) -> dict[str, Any]:
        binds = [[bind.descriptor, bind.path, bind.writable] for bind in self.binds]
        found = {"kind": "bubblewrap", "binds": binds, "name": self.name, "limits": asdict(self.limits)}
        return found | {"filter": self.filter, "devices": list(self.devices), "output": self.output}

    @classmethod
    def from_json(cls, body: Any) -> Jail:
        """Raises ValueError, KeyError or TypeError for anything ``to_json`` does not write."""
        binds = tuple(Bind(int(number), str(path), bool(writable)) for number, path, writable in body["binds"])
        limits = Limits(**{name: int(value) for name, value in body["limits"].items()})
        wanted = None if body["filter"] is None else str(body["filter"])
        devices = tuple(str(device) for device in body["devices"])
        return cls(binds, str(body["name"]), limits, wanted, devices, bool(body["output"]))
