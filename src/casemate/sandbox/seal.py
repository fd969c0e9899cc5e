"""The host's seal on what it stores of machines: a MAC under a key that no VMM can read.

``seal/key`` below the home: 32 random bytes, made once by the first daemon, read by each one at its start, never
replaced by us. The folder and the file are their owner's alone: a VMM has a uid of its own, but the daemon's group.
A VMM loads whatever device state it is given, and what it loads runs in it before any check of ours; so what was
not sealed by this host, for that tenant, as that kind of thing, is never given to one.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import os
import secrets
import stat
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal

from casemate.errors import HostError, SealBroken
from casemate.host import sync_folder

Kind = Literal["image-snapshot", "session-snapshot", "suspended-sandbox"]
KEY_BYTES = 32
DOMAIN = b"casemate seal 1\n"
GIVE_UP = "put the key back from a backup, or give up what it has sealed: rm -r {things}"


class Seal:
    """Made by ``open_seal``."""

    def __init__(self, key: bytes) -> None:
        self._key = key

    def __repr__(self) -> str:
        return "Seal(…)"  # the key stays out of logs and tracebacks

    def over(self, tenant: str, kind: Kind, facts: Mapping[str, Any]) -> str:
        """The MAC, in hexadecimal, of what JSON can say of *facts*; a list and a tuple are the same.

        Raises ValueError for a number JSON does not have, TypeError for what it cannot say.
        """
        return hmac.new(self._key, DOMAIN + _canonical([tenant, kind, facts]), hashlib.sha256).hexdigest()

    def check(self, tenant: str, kind: Kind, facts: Mapping[str, Any], mac: object, *, what: str) -> None:
        """Raises SealBroken, about *what*, unless *mac* is the one of ``over``."""
        try:
            expected = self.over(tenant, kind, facts)
        except (TypeError, ValueError) as error:
            raise _broken(what) from error
        if not isinstance(mac, str) or not hmac.compare_digest(expected.encode(), mac.encode(errors="replace")):
            raise _broken(what)


def open_seal(home: Path) -> Seal:
    """The seal of *home*, made when it has none and nothing there has ever been sealed. Blocks, briefly.

    Raises HostError for a key that is lost, unreadable, not whole, or open to others.
    """
    path = home / "seal" / "key"
    try:
        return Seal(_read_key(path))
    except FileNotFoundError:
        if things := sealed_things(home):
            raise HostError(
                f"the key {path} is gone, and {len(things)} stored machines are sealed with it",
                hint=GIVE_UP.format(things=" ".join(map(str, things[:20])) + (" …" if len(things) > 20 else "")),
            ) from None
    except OSError as error:
        raise HostError(f"the key {path} cannot be read: {error.strerror}", hint="it is the daemon's uid's") from error
    try:
        _make_key(path)
        return Seal(_read_key(path))
    except OSError as error:
        raise HostError(f"the key {path} cannot be made: {error.strerror}", hint="see casemate doctor") from error


def sealed_things(home: Path) -> list[Path]:
    """The folders in *home* whose manifests carry a MAC."""
    found = [*home.glob("snapshots/*/manifest.json"), *home.glob("sandboxes/*/suspended/manifest.json")]
    return sorted(path.parent for path in found if not path.parent.name.startswith(".") and _is_sealed(path))


def _is_sealed(manifest: Path) -> bool:
    try:
        body = json.loads(manifest.read_bytes())
    except (OSError, ValueError):  # of no use with any key
        return False
    return isinstance(body, dict) and "mac" in body


def _canonical(facts: Any) -> bytes:
    """One text for what is equal: sorted names, no space, ASCII."""
    return json.dumps(facts, sort_keys=True, separators=(",", ":"), allow_nan=False).encode("ascii")


def _read_key(path: Path) -> bytes:
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    with os.fdopen(descriptor, "rb") as file:
        _check_closed(path, os.fstat(descriptor))
        key = file.read(KEY_BYTES + 1)
    if len(key) != KEY_BYTES:
        raise HostError(f"the key {path} is not of {KEY_BYTES} bytes", hint="put it back from a backup")
    return key


def _check_closed(path: Path, found: os.stat_result) -> None:
    """A key that others could read or write is no secret any more; who finds it so has to decide, not we."""
    if not stat.S_ISREG(found.st_mode):
        raise HostError(f"the key {path} is not a file", hint="put it back from a backup")
    if found.st_mode & 0o077:
        raise HostError(
            f"the key {path} is open to others (mode {stat.S_IMODE(found.st_mode):03o})",
            hint=f"if nobody can have read it: chmod 600 {path}; else remove it together with all it has sealed",
        )
    if os.geteuid() not in (0, found.st_uid):
        raise HostError(f"the key {path} belongs to the uid {found.st_uid}", hint="run as the home's owner")


def _make_key(path: Path) -> None:
    """Durable before anything is sealed with it; never over one that is there."""
    path.parent.mkdir(mode=0o700, exist_ok=True)
    path.parent.chmod(0o700)
    temporary = path.parent / f".{secrets.token_hex(6)}"
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(secrets.token_bytes(KEY_BYTES))
            file.flush()
            os.fsync(descriptor)
        with suppress(FileExistsError):
            os.link(temporary, path)
    finally:
        temporary.unlink()
    for folder in (path.parent, path.parent.parent):
        sync_folder(folder)


def _broken(what: str) -> SealBroken:
    return SealBroken(
        f"{what} was not sealed by this host, or was changed since",
        hint="what it stores is not given to a VMM; find out who can write in the home, and remove it",
        evidence={"what": what},
    )
