"""API keys: ``cm_<id>_<secret>``, shown once, kept as a hash, judged from memory.

The secret is 256 random bits, so a plain SHA-256 of it is enough: scrypt and its like make *guessable* secrets
dear to guess, and would let anybody who sends nonsense cost the daemon 50 ms of processor for each try. All keys
are held in memory, where a wrong one costs a look-up and a hash; the daemon is the only one that writes them.
"""

from __future__ import annotations

import hashlib
import hmac
import math
import re
import secrets
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace

import anyio

from casemate.api.principal import GRANTABLE
from casemate.audit import EventKind, Trail
from casemate.errors import InvalidSpec, NotFound, Unauthorized
from casemate.storage import Database, KeyRow, keys

ALPHABET = "0123456789abcdefghjkmnpqrstvwxyz"  # five bits each; nobody misreads one
ID_SIGNS, SECRET_SIGNS = 12, 52
_KEY = re.compile(f"cm_([{ALPHABET}]{{{ID_SIGNS}}})_([{ALPHABET}]{{{SECRET_SIGNS}}})")
_NOBODYS = hashlib.sha256(b"").hexdigest()  # compared with where there is no such key: as long as with one
_TENANT = re.compile("[a-z0-9][a-z0-9-]{0,62}")
MAX_NAME_CHARS = 100
MAX_EXPIRES_S = 10 * 366 * 86_400


class Keys:
    """All keys of this daemon; ``load`` once before use."""

    def __init__(self, database: Database, host_id: str, trail: Trail) -> None:
        self._database = database
        self._host_id = host_id
        self._trail = trail
        self._known: dict[str, KeyRow] = {}
        self._under_way: dict[str, set[anyio.CancelScope]] = {}

    async def load(self) -> None:
        self._known = {row.id: row for row in await self._database.read(keys.listed)}

    async def create(
        self, *, by: str, tenant: str, name: str, scopes: Sequence[str], expires_s: float | None
    ) -> tuple[KeyRow, str]:
        """A new key and its text, which cannot be had again. Raises InvalidSpec."""
        if not _TENANT.fullmatch(tenant) or tenant == "system":
            raise InvalidSpec(f"tenant {tenant[:80]!r} is not valid", hint="up to 63 of a-z, 0-9 and -; not system")
        if len(name) > MAX_NAME_CHARS or not name.isprintable():
            raise InvalidSpec(f"a key's name is at most {MAX_NAME_CHARS} printable characters")
        if not scopes or (unknown := sorted(set(scopes) - set(GRANTABLE))):
            what = f"{unknown[0][:80]!r} is no scope" if scopes else "a key without a scope opens nothing"
            raise InvalidSpec(what, hint=f"scopes: {', '.join(GRANTABLE)}")
        if expires_s is not None and not 0 < expires_s <= MAX_EXPIRES_S:
            raise InvalidSpec(f"expires_s is {expires_s:g}; it must be from 0 to {MAX_EXPIRES_S}")
        key_id, secret, now = _random(ID_SIGNS), _random(SECRET_SIGNS), time.time()
        row = KeyRow(
            id=key_id,
            tenant=tenant,
            host_id=self._host_id,
            name=name,
            scopes=tuple(sorted(set(scopes))),
            hash=_hash(secret),
            created_at=now,
            updated_at=now,
            expires_at=None if expires_s is None else now + expires_s,
        )
        detail = {"scopes": list(row.scopes), "expires_at": row.expires_at, "name": name}
        await self._trail.record(EventKind.KEY_CREATED, tenant=tenant, actor=by, subject=key_id, detail=detail)
        await self._database.write(keys.add, row)
        self._known[key_id] = row
        return row, f"cm_{key_id}_{secret}"

    async def revoke(self, key_id: str, *, by: str) -> KeyRow:
        """Refuse it from now on, and end what is under way with it; again changes nothing. Raises NotFound."""
        row = self._known.get(key_id)
        if row is None:
            raise NotFound(f"there is no key {key_id[:80]!r}", hint="casemate key ls lists them")
        if row.revoked_at is None:
            await self._trail.record(EventKind.KEY_REVOKED, tenant=row.tenant, actor=by, subject=key_id)
            await self._database.write(keys.revoke, key_id)
            row = self._known[key_id] = replace(row, revoked_at=time.time())
        for permission in self._under_way.get(key_id, set()).copy():
            permission.cancel()
        return row

    def list(self) -> list[KeyRow]:
        """Oldest first; the revoked and expired ones too."""
        return list(self._known.values())

    def judge(self, text: str) -> KeyRow:
        """The good key that *text* is. Raises Unauthorized; only who has the secret learns why."""
        found = _KEY.fullmatch(text)
        row = self._known.get(found[1]) if found else None
        if not hmac.compare_digest(_hash(found[2] if found else ""), row.hash if row else _NOBODYS) or row is None:
            raise Unauthorized("the API key is not valid", hint="make one on the host: casemate key create")
        if row.revoked_at is not None:
            raise Unauthorized(f"key {row.id} was revoked", hint="make another: casemate key create")
        if row.expires_at is not None and row.expires_at <= time.time():
            raise Unauthorized(f"key {row.id} has expired", hint="make another: casemate key create")
        return row

    @contextmanager
    def while_good(self, row: KeyRow) -> Iterator[anyio.CancelScope]:
        """The block is cancelled when the key is revoked or expires."""
        left_s = math.inf if row.expires_at is None else row.expires_at - time.time()
        held = self._under_way.setdefault(row.id, set())
        with anyio.CancelScope(deadline=anyio.current_time() + left_s) as permission:
            held.add(permission)
            try:
                yield permission
            finally:
                held.discard(permission)
                if not held:
                    self._under_way.pop(row.id, None)


def id_in(text: str) -> str | None:
    """The id that a key, good or not, claims."""
    found = _KEY.fullmatch(text)
    return found[1] if found else None


def _hash(secret: str) -> str:
    return hashlib.sha256(secret.encode()).hexdigest()


def _random(signs: int) -> str:
    return "".join(secrets.choice(ALPHABET) for _ in range(signs))
