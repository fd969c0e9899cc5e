"""The kernel's account of one process: what runs there, what it may do and use, which memory it has mapped.

Read from /proc and the control groups by the launcher, which alone may look at a VMM of another uid. Nothing in it
is what was asked for; whoever wants to know whether it is that compares.
"""

from __future__ import annotations

import ctypes
import hashlib
import mmap
import os
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from casemate.host.cgroup import CONTROLLERS, Trees

NAMESPACES = ("cgroup", "ipc", "mnt", "net", "pid", "user", "uts")
RLIMITS = {"Max open files": "nofile", "Max processes": "nproc", "Max core file size": "core"}
RLIMITS |= {"Max locked memory": "memlock", "Max file size": "fsize", "Max data size": "data"}
HASH_BYTES = 1 << 20
REMEMBERED = 64


@dataclass(frozen=True, slots=True)
class GroupLimits:
    """What the control groups hold a process to, all its groups taken together; None where nothing does."""

    version: str  # "v1" or "v2", of the tree that limits
    memory_bytes: int | None
    cpu_percent: int | None
    pids: int | None


@dataclass(frozen=True, slots=True)
class Account:
    """One process at one moment."""

    pid: int
    executable_sha256: str
    private_bytes: int  # of the file in question, mapped so that writes stay with the process
    shared_bytes: int  # of it, mapped so that writes reach the file
    uid: int
    capabilities: int  # any that any thread has or could get, as bits
    no_new_privs: bool
    seccomp_mode: int  # 2: filters
    seccomp_filters: int  # of the thread that has the fewest
    namespaces: Mapping[str, str]  # those that are not ours, as the kernel names them
    cgroup: str | None  # its path in every tree that counts; None where it has none of its own
    limits: GroupLimits | None
    rlimits: Mapping[str, int]  # -1: none
    oom_score_adj: int

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, body: Mapping[str, Any]) -> Account:
        """Raises TypeError for anything ``to_json`` does not write."""
        limits = body["limits"]
        return cls(**{**body, "limits": None if limits is None else GroupLimits(**limits)})


class Reader:
    """Reads accounts; remembers what it has hashed, by inode and times."""

    def __init__(self, trees: Trees) -> None:
        self._trees = trees
        self._digests: dict[tuple[int, ...], str] = {}

    def read(self, pid: int, memory: int) -> Account:
        """The account of *pid*, of which the caller knows that it lives, before and after; *memory* is a descriptor.

        Raises OSError, ValueError, KeyError for what cannot be read.
        """
        process = Path(f"/proc/{pid}")
        threads = [_status(path / "status") for path in (process / "task").iterdir()]
        private, shared = _mapped(process, memory)
        cgroup, limits = self._group(process)
        return Account(
            pid=pid,
            executable_sha256=self._digest(process / "exe"),
            private_bytes=private,
            shared_bytes=shared,
            uid=_one_uid(threads),
            capabilities=_capabilities(threads),
            no_new_privs=all(thread["NoNewPrivs"] == "1" for thread in threads),
            seccomp_mode=min(int(thread["Seccomp"]) for thread in threads),
            seccomp_filters=min(int(thread["Seccomp_filters"]) for thread in threads),
            namespaces=dict(_other_namespaces(process)),
            cgroup=cgroup,
            limits=limits,
            rlimits=dict(_rlimits(process)),
            oom_score_adj=int((process / "oom_score_adj").read_text()),
        )

    def _digest(self, path: Path) -> str:
        with open(path, "rb", buffering=0) as file:
            stat = os.fstat(file.fileno())
            key = (stat.st_dev, stat.st_ino, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns)
            if key not in self._digests:
                if len(self._digests) >= REMEMBERED:  # a jailed Firecracker is a copy that nobody asks for again
                    del self._digests[next(iter(self._digests))]
                digest = hashlib.sha256()
                while piece := file.read(HASH_BYTES):
                    digest.update(piece)
                self._digests[key] = digest.hexdigest()
        return self._digests[key]

    def _group(self, process: Path) -> tuple[str | None, GroupLimits | None]:
        """Its group, if it is in one and the same in every tree that limits or kills."""
        paths: dict[str, str] = {}
        for line in (process / "cgroup").read_text().splitlines():
            _, controllers, path = line.split(":", 2)
            paths |= dict.fromkeys(controllers.split(",") if controllers else ["v2"], path)
        try:
            places = {controller: self._trees.place(controller) for controller in CONTROLLERS}
        except FileNotFoundError:
            return None, None
        trees = {name if version == 1 else "v2" for name, (_, version) in places.items()}
        if self._trees.v2 is not None:
            trees.add("v2")
        found = {paths[tree] for tree in trees}
        if len(found) != 1 or (path := found.pop()) == "/":
            return None, None
        folders = {name: root / path.lstrip("/") for name, (root, _) in places.items()}
        versions = {version for _, version in places.values()}
        return path, _group_limits(folders, 2 if versions == {2} else 1)


def _group_limits(folders: Mapping[str, Path], version: int) -> GroupLimits:
    if version == 2:
        quota, period = (folders["cpu"] / "cpu.max").read_text().split()
        memory = (folders["memory"] / "memory.max").read_text()
    else:
        quota = (folders["cpu"] / "cpu.cfs_quota_us").read_text()
        period = (folders["cpu"] / "cpu.cfs_period_us").read_text()
        memory = (folders["memory"] / "memory.limit_in_bytes").read_text()
    quota_us, memory_bytes = _number(quota), _number(memory)
    return GroupLimits(
        version=f"v{version}",
        memory_bytes=memory_bytes,
        cpu_percent=None if quota_us is None else quota_us * 100 // int(period),
        pids=_number((folders["pids"] / "pids.max").read_text()),
    )


def _number(text: str) -> int | None:
    """None for "max", and for what v1 says instead."""
    value = -1 if text.strip() == "max" else int(text)
    return value if 0 <= value < 1 << 62 else None


def _status(path: Path) -> dict[str, str]:
    lines = path.read_text().splitlines()
    return {name: value.strip() for name, _, value in (line.partition(":") for line in lines)}


def _one_uid(threads: list[dict[str, str]]) -> int:
    """Real, effective, saved and file system uid of every thread. Raises ValueError unless they are one."""
    (uid,) = {int(uid) for thread in threads for uid in thread["Uid"].split()}
    return uid


def _capabilities(threads: list[dict[str, str]]) -> int:
    """Under no_new_privs execve() adds nothing to what is permitted, whatever is inheritable or in the bounding set."""
    found = 0
    for thread in threads:
        for kind in ("Prm", "Eff", "Amb") if thread["NoNewPrivs"] == "1" else ("Prm", "Eff", "Amb", "Inh", "Bnd"):
            found |= int(thread[f"Cap{kind}"], 16)
    return found


@dataclass(frozen=True, slots=True)
class Area:
    """A part of a process' memory that is a file's from *offset* on; *access* as in ``rw-p``."""

    begin: int
    end: int
    access: str
    offset: int


def areas_of(process: Path, memory: int) -> list[Area]:
    """What the process (a folder of /proc) has mapped of the file behind the descriptor *memory*.

    The file is recognised by mapping it here and comparing the kernel's own words for both: where a file system has
    several devices or layers, stat() has others. Raises OSError, ValueError.
    """
    wanted, found = _words_for(memory), []
    for line in (process / "maps").read_text().splitlines():
        area, access, offset, device, inode = line.split(None, 5)[:5]
        if (device, inode) == wanted:
            begin, _, end = area.partition("-")
            found.append(Area(int(begin, 16), int(end, 16), access, int(offset, 16)))
    return found


def bare(process: Path, *, filters: int) -> bool:
    """Whether a process of a jail has given up all that a VMM gives up before it runs a guest.

    *filters*: so many of system calls it is then under. Raises OSError, KeyError.
    """
    threads = [_status(path / "status") for path in (process / "task").iterdir()]
    limited = all(int(thread["Seccomp_filters"]) >= filters for thread in threads)
    return bool(threads) and limited and _capabilities(threads) == 0


def _mapped(process: Path, memory: int) -> tuple[int, int]:
    """How many bytes of the file behind *memory* the process has mapped, privately and shared."""
    private = shared = 0
    for area in areas_of(process, memory):
        length = area.end - area.begin
        private, shared = (private + length, shared) if area.access[3] == "p" else (private, shared + length)
    return private, shared


def _words_for(memory: int) -> tuple[str, str]:
    """Device and inode of a file as /proc/PID/maps has them."""
    with mmap.mmap(memory, mmap.PAGESIZE, access=mmap.ACCESS_COPY) as mapping:
        handle = ctypes.c_char.from_buffer(mapping)
        address = ctypes.addressof(handle)
        del handle  # else the mapping can't be closed
        for line in Path("/proc/self/maps").read_text().splitlines():
            area, _, _, device, inode = line.split(None, 5)[:5]
            if int(area.partition("-")[0], 16) <= address < int(area.partition("-")[2], 16):
                return device, inode
    raise ValueError("a file that was mapped is not among our own mappings")


def _other_namespaces(process: Path) -> Iterator[tuple[str, str]]:
    for kind in NAMESPACES:
        theirs = os.readlink(process / "ns" / kind)
        if theirs != os.readlink(f"/proc/self/ns/{kind}"):
            yield kind, theirs


def _rlimits(process: Path) -> Iterator[tuple[str, int]]:
    for line in (process / "limits").read_text().splitlines():
        for title, name in RLIMITS.items():
            if line.startswith(title):
                hard = line.removeprefix(title).split()[1]
                yield name, -1 if hard == "unlimited" else int(hard)
