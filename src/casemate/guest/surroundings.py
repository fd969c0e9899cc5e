"""What a user's program finds when it starts: whose rights, which folder, which environment."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from casemate.errors import ExecRefused
from casemate.guest.accounts import Account, Accounts
from casemate.guest.handshake import Hello
from casemate.guest.zygote import Identity, Job

PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
# What an interpreter, the loader or a library has read when it began.
_READ_ONCE = ("PYTHON", "LD_", "LC_", "LANG", "GLIBC_", "MALLOC_", "MPL", "MATPLOTLIB", "OMP_", "OPENBLAS_", "MKL_")
_READ_ONCE_WHOLE = frozenset({"PATH", "HOME", "SHELL"})
_TOLD_BYTES = 32 << 10


def can_be_told(before: Mapping[str, str], now: Mapping[str, str]) -> bool:
    """Whether a process that began with *before* is as good with *now* as one that began with it."""
    differing = [name for name in before.keys() | now.keys() if before.get(name) != now.get(name)]
    if any(name.startswith(_READ_ONCE) or name in _READ_ONCE_WHOLE for name in differing):
        return False
    return sum(len(name) + len(value) for name, value in now.items()) < _TOLD_BYTES // 6  # one may be six in JSON


@dataclass(slots=True)
class Surroundings:
    """The sandbox's defaults, as HELLO set them. *change_user* False: everything runs as ourselves (tests)."""

    accounts: Accounts = field(default_factory=Accounts)
    env: dict[str, str] = field(default_factory=dict)
    user: str | None = None
    cwd: str | None = None
    change_user: bool = True

    def take(self, hello: Hello) -> None:
        """Become what *hello* says; in a copy what is there stays below it."""
        if hello.copy:
            self.env = self.env | hello.env
            self.user, self.cwd = hello.user or self.user, hello.cwd or self.cwd
        else:
            self.env, self.user, self.cwd = hello.env, hello.user, hello.cwd

    def account(self, user: str | None) -> Account:
        """Raises ExecRefused when there is no such user."""
        name = user or self.user
        found = self.accounts.find(name) if name else self.accounts.default()
        if found is None:
            raise ExecRefused(
                f"there is no user {name!r} in this image",
                hint="name a user of its /etc/passwd, or a uid",
                evidence={"errno": "ENOENT"},
            )
        return found

    def job(self, argv: Sequence[str], env: Mapping[str, str], cwd: str | None, user: str | None) -> Job:
        """Raises ExecRefused when there is no such user."""
        account = self.account(user)
        home = account.home
        whole = {
            "PATH": PATH,
            "HOME": home,
            "USER": account.name,
            "LOGNAME": account.name,
            "SHELL": account.shell,
            "LANG": "C.UTF-8",
            "TZ": "UTC",
        }
        whole.update(self.env)
        whole.update(env)
        folder = cwd or (self.cwd if user in (None, self.user) else None)
        identity = Identity(account.uid, account.gid, account.groups) if self.change_user else None
        return Job(argv, whole, os.path.join(home, folder) if folder else home, identity)
