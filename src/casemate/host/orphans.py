"""What a daemon that was killed may have left in the kernel's hands: processes, and mounts below its home.

A VMM dies with its launcher and the launcher with its daemon, so as a rule there is nothing. But a parent-death
signal reaches only who has asked for it by then: a bubblewrap whose parent died in its first milliseconds hangs
for ever. So this looks, by what the kernel says: a VMM of this home runs the home's own copy of the binary (device
and inode of ``/proc/PID/exe``), a jail that is only being made holds that copy's folder open; both have a uid that
is ours to give and ``guest=<id>`` among their arguments. A launcher of this home was started for it. The caller
holds the home's lock, so that whatever is found belongs to nobody who lives.
"""

from __future__ import annotations

import ctypes
import os
import re
import select
import signal
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from casemate.config import Settings, default_home

LAUNCHER = "casemate.host.launcher"
LAUNCHER_END_S = 3.0  # one whose daemon has just died is about to end by itself, with its machines
KILL_S = 10.0
MNT_DETACH, UMOUNT_NOFOLLOW = 2, 8  # Source: umount(2)
_GUEST = re.compile(rb"guest=([0-9a-z]{26})")
_libc = ctypes.CDLL(None, use_errno=True)


@dataclass(frozen=True, slots=True)
class Orphan:
    """*pidfd* holds on to the very process that was looked at. *name*: ``launcher`` or the guest's id."""

    pid: int
    pidfd: int
    name: str


@dataclass(slots=True)
class Swept:
    """*alive*: the names of the processes that did not die; *stuck*: the mounts that stayed."""

    processes: list[str] = field(default_factory=list)
    mounts: list[str] = field(default_factory=list)
    alive: list[str] = field(default_factory=list)
    stuck: list[str] = field(default_factory=list)


def sweep_kernel(settings: Settings) -> Swept:
    """Kill and unmount what is left of this home. Call it with the home's lock held, before dropping privilege.

    Blocks: some milliseconds when there is nothing, at most 30 s.
    """
    swept = Swept()
    launchers = _find(settings, launchers=True)
    _wait(launchers, LAUNCHER_END_S)
    _end([*launchers, *_find(settings, launchers=False)], swept)
    _end(_find(settings, launchers=False), swept)  # what a launcher had still begun
    _unmount_below(swept, settings.home / "sandboxes", settings.home / "jail")
    return swept


def _find(settings: Settings, *, launchers: bool) -> list[Orphan]:
    closures = [*settings.home.glob("vmm/*/usr/bin/*"), *settings.home.glob("vmm/*/usr")]
    ours = {(s.st_dev, s.st_ino) for s in (path.stat() for path in closures)}
    found = []
    for entry in os.listdir("/proc"):
        if not entry.isdecimal() or int(entry) == os.getpid():
            continue
        try:
            pidfd = os.pidfd_open(int(entry))
        except OSError:  # it has ended, or is a thread
            continue
        name = _launcher_of(entry, settings.home) if launchers else _guest_of(entry, settings, ours)
        if name is None:
            os.close(pidfd)
        else:
            found.append(Orphan(int(entry), pidfd, name))
    return found


def _guest_of(pid: str, settings: Settings, ours: set[tuple[int, int]]) -> str | None:
    """The id of the guest that process *pid* runs, or will run, for the home whose VMM's files are *ours*."""
    try:
        words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
        named = next((m[1].decode() for word in words if (m := _GUEST.fullmatch(word))), None)
        if named is None or not _is_our_uid(os.stat(f"/proc/{pid}").st_uid, settings):
            return None
        held = [f"/proc/{pid}/exe", *(f"/proc/{pid}/fd/{number}" for number in os.listdir(f"/proc/{pid}/fd"))]
        return named if any(_identity(path) in ours for path in held) else None
    except OSError:  # it has ended, or is not ours to look at, so it is not one of ours
        return None


def _identity(path: str) -> tuple[int, int] | None:
    try:
        found = os.stat(path)
    except FileNotFoundError:  # closed since it was listed, or not a file
        return None
    return found.st_dev, found.st_ino


def _is_our_uid(uid: int, settings: Settings) -> bool:
    if os.geteuid() != 0:
        return uid == os.geteuid()
    # a process that may not be dumped shows as root's
    return uid == 0 or settings.uid_base <= uid < settings.uid_base + settings.uid_count


def _launcher_of(pid: str, home: Path) -> str | None:
    try:
        words = Path(f"/proc/{pid}/cmdline").read_bytes().decode(errors="replace").split("\0")
        if LAUNCHER not in words or words[words.index(LAUNCHER) - 1] != "-m":
            return None
        env = _environment(pid)
        its_home = Path(env.get("CASEMATE_HOME") or default_home(env)).expanduser().absolute()
        # a container's home may have the same path: it is the folder that has to be the same
        same = os.path.samestat(os.stat(f"/proc/{pid}/root{its_home}"), os.stat(home))
    except (OSError, RuntimeError):
        return None
    return "launcher" if same else None


def _environment(pid: str) -> dict[str, str]:
    pairs = Path(f"/proc/{pid}/environ").read_bytes().decode(errors="replace").split("\0")
    return dict(pair.split("=", 1) for pair in pairs if "=" in pair)


def _end(orphans: Sequence[Orphan], swept: Swept) -> None:
    """Kill them and wait for it. Those that have ended by themselves are not spoken of."""
    living = _wait(orphans, 0.0)
    for orphan in living:
        try:
            signal.pidfd_send_signal(orphan.pidfd, signal.SIGKILL)
        except ProcessLookupError:
            continue
    stubborn = _wait(living, KILL_S)
    for orphan in living:
        if orphan in stubborn:
            swept.alive.append(orphan.name)
        else:
            swept.processes.append(f"{orphan.name} (pid {orphan.pid})")
    for orphan in orphans:
        os.close(orphan.pidfd)


def _wait(orphans: Sequence[Orphan], within_s: float) -> list[Orphan]:
    """Those that still live then."""
    living, deadline = {o.pidfd: o for o in orphans}, time.monotonic() + within_s
    poll = select.poll()
    for descriptor in living:
        poll.register(descriptor, select.POLLIN)
    while living:
        ended = poll.poll(max(0.0, deadline - time.monotonic()) * 1000)
        for descriptor, _ in ended:
            poll.unregister(descriptor)
            del living[descriptor]
        if not ended:
            break
    return list(living.values())


def _unmount_below(swept: Swept, *folders: Path) -> None:
    """Detach what is mounted below *folders*, the deepest first."""
    for place in sorted(_mounts(), key=len, reverse=True):
        if any(Path(place) != folder and Path(place).is_relative_to(folder) for folder in folders):
            done = _libc.umount2(os.fsencode(place), MNT_DETACH | UMOUNT_NOFOLLOW) == 0
            (swept.mounts if done else swept.stuck).append(place)


def _mounts() -> Iterator[str]:
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        # Source: proc_pid_mountinfo(5): blanks and backslashes are octal there
        yield re.sub(r"\\([0-7]{3})", lambda m: chr(int(m[1], 8)), line.split()[4])
