"""Where the daemon is: this user's own unix socket, or what CASEMATE_URL says."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from casemate.errors import InvalidSpec

MAX_SOCKET_PATH_BYTES = 107  # sockaddr_un has 108, with the NUL at its end


@dataclass(frozen=True, slots=True)
class Target:
    """*socket* is set for a unix socket; *home* as well where a daemon may be started on demand."""

    base_url: str
    socket: Path | None = None
    home: Path | None = None

    def __str__(self) -> str:
        return f"unix://{self.socket}" if self.socket else self.base_url


def find_target(url: str | None = None, env: Mapping[str, str] = os.environ) -> Target:
    """*url* (or CASEMATE_URL): http://…, https://… or unix:///path; neither: the daemon of this user's home.

    Raises InvalidSpec.
    """
    url = url or env.get("CASEMATE_URL") or ""
    if not url:
        home = home_folder(env)
        return Target("http://casemate", home / "run/daemon.sock", home)
    scheme, separator, rest = url.partition("://")
    if scheme == "unix" and separator and rest.startswith("/"):
        return Target("http://casemate", Path(rest))
    if scheme in ("http", "https") and separator and rest:
        return Target(url.rstrip("/"))
    raise InvalidSpec(
        f"CASEMATE_URL is {url[:200]!r}", hint="use http://host:port, https://host or unix:///path/to/daemon.sock"
    )


def credential_of(
    target: Target, api_key: str | None = None, env: Mapping[str, str] = os.environ
) -> dict[str, str] | None:
    """The header that goes with each request over TCP. Raises InvalidSpec for what cannot be a key."""
    key = api_key or env.get("CASEMATE_API_KEY") or ""
    if target.socket is not None or not key:
        return None
    if not key.isascii() or not key.isprintable():
        raise InvalidSpec("CASEMATE_API_KEY is not an API key", hint="it is what `casemate key create` printed")
    return {"authorization": f"Bearer {key}"}


def home_folder(env: Mapping[str, str] = os.environ) -> Path:
    """As ``casemate.config`` has it, without reading its file: all a client needs is the socket."""
    if given := env.get("CASEMATE_HOME"):
        return Path(given).expanduser().absolute()
    from casemate.config import default_home  # late: 20 ms that most calls save

    return default_home(env)


class Connectable:
    """A path by which a socket can be connected to although its own is too long; holds its folder open."""

    def __init__(self, socket: Path) -> None:
        self.path = str(socket)
        self._folder: int | None = None
        if len(os.fsencode(socket)) > MAX_SOCKET_PATH_BYTES:
            try:
                self._folder = os.open(socket.parent, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
            except FileNotFoundError:
                return  # then there is no socket in it either, and connecting says so
            self.path = f"/proc/self/fd/{self._folder}/{socket.name}"

    def close(self) -> None:
        if self._folder is not None:
            os.close(self._folder)
            self._folder = None
