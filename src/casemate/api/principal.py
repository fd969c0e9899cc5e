"""On whose behalf a request is made, and the one table of what it must be allowed."""

from __future__ import annotations

from dataclasses import dataclass

from starlette.requests import HTTPConnection

LOCAL_TENANT = "local"
EVERYTHING = "*"
ADMIN = "admin"
# What the path of a request begins with → the noun of its scope. GET needs NOUN:read, all else NOUN:write, which
# includes reading; what stands in no row needs admin. None: any credential will do.
NOUNS: dict[str, str | None] = {
    "/v1/health": None,
    "/v1/openapi.json": None,
    "/v1/sandboxes": "sandboxes",
    "/v1/images": "images",
    "/v1/snapshots": "snapshots",
    "/v1/events": "events",
    "/v1/pools": "pools",
}
# For these a key is never enough: they are served to the daemon's own user on its unix socket.
LOCAL_ONLY = ("/v1/keys",)
GRANTABLE = (
    *sorted(f"{noun}:{act}" for noun in NOUNS.values() if noun for act in ("read", "write")),
    ADMIN,
    EVERYTHING,
)


@dataclass(frozen=True, slots=True)
class Principal:
    """*local*: it is the daemon's own user, or root, on the daemon's unix socket."""

    tenant: str
    key_id: str
    scopes: frozenset[str]
    local: bool = False

    def may(self, scope: str | None) -> bool:
        if scope is None or EVERYTHING in self.scopes or scope in self.scopes:
            return True
        noun, _, act = scope.partition(":")
        return act == "read" and f"{noun}:write" in self.scopes

    @property
    def is_owner(self) -> bool:
        """Whether it acts for this host, and not just for a tenant on it."""
        return self.tenant == LOCAL_TENANT and (self.local or self.may(ADMIN))


def scope_of(method: str, path: str) -> str | None:
    """What a request needs; None where any credential will do."""
    for begin, noun in NOUNS.items():
        if path == begin or path.startswith(f"{begin}/"):
            return noun and f"{noun}:{'read' if method == 'GET' else 'write'}"
    return ADMIN


def is_local_only(path: str) -> bool:
    return any(path == begin or path.startswith(f"{begin}/") for begin in LOCAL_ONLY)


def principal(connection: HTTPConnection) -> Principal:
    found = connection.scope["principal"]
    assert isinstance(found, Principal)
    return found
