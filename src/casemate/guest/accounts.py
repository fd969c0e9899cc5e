"""Who a name is in this image: /etc/passwd and /etc/group, read by hand.

Not through libc's name service: that would load the image's libraries into the agent.
"""

from __future__ import annotations

import os
from dataclasses import dataclass

_LIMIT_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class Account:
    """*home* exists, or is /."""

    name: str
    uid: int
    gid: int
    groups: tuple[int, ...]
    home: str
    shell: str


class Accounts:
    """Looks names up; reads the files again when they have changed."""

    def __init__(self, etc: str = "/etc") -> None:
        self._passwd, self._group = os.path.join(etc, "passwd"), os.path.join(etc, "group")
        self._seen: object = None
        self._found: dict[str, Account | None] = {}

    def find(self, name: str) -> Account | None:
        """The account of that name or decimal uid; root always is."""
        seen = (_signature(self._passwd), _signature(self._group))
        if seen != self._seen:
            self._seen, self._found = seen, {}
        if name not in self._found:
            if len(self._found) > 100:
                self._found.clear()
            self._found[name] = self._look_up(name)
        return self._found[name]

    def default(self) -> Account:
        """`user` where the image has it, root otherwise."""
        account = self.find("user") or self.find("root")
        assert account is not None, "root is always found"
        return account

    def _look_up(self, name: str) -> Account | None:
        for fields in _records(self._passwd, 7):
            if name in (fields[0], fields[2]) and fields[2].isdecimal() and fields[3].isdecimal():
                return self._account(fields[0], int(fields[2]), int(fields[3]), fields[5], fields[6])
        if name == "root":
            return self._account("root", 0, 0, "/root", "/bin/sh")
        if name.isdecimal() and int(name) < 2**32 - 1:
            return self._account(name, int(name), int(name), "/", "/bin/sh")
        return None

    def _account(self, name: str, uid: int, gid: int, home: str, shell: str) -> Account:
        groups = [
            int(fields[2])
            for fields in _records(self._group, 4)
            if name in fields[3].split(",") and fields[2].isdecimal() and int(fields[2]) != gid
        ]
        home = home if home.startswith("/") and os.path.isdir(home) else "/"
        return Account(name, uid, gid, (gid, *groups), home, shell or "/bin/sh")


def _signature(path: str) -> tuple[int, int, int] | None:
    try:
        found = os.stat(path)
    except OSError:
        return None
    return found.st_ino, found.st_size, found.st_mtime_ns


def _records(path: str, count: int) -> list[list[str]]:
    try:
        with open(path, encoding="utf-8", errors="surrogateescape") as file:
            text = file.read(_LIMIT_BYTES)
    except OSError:
        return []
    return [fields for line in text.splitlines() if len(fields := line.split(":")) == count]
