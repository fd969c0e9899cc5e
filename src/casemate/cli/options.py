"""What the user typed, checked: K=V, HOST:GUEST, 30d. Raises InvalidSpec."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from casemate.errors import InvalidSpec, RequestError

HOME = "/home/user"
UNITS_S = {"s": 1, "m": 60, "h": 3600, "d": 86_400}


def env_of(words: Sequence[str]) -> dict[str, str]:
    """``K=V``; ``K`` alone passes on our own K."""
    found = {}
    for word in words:
        name, equals, value = word.partition("=")
        if not equals:
            if name not in os.environ:
                raise InvalidSpec(f"--env {word}: it is not set here", hint=f"say --env {word}=VALUE")
            value = os.environ[name]
        found[name] = value
    return found


def labels_of(words: Sequence[str]) -> dict[str, str]:
    pairs = [word.partition("=") for word in words]
    for name, equals, _ in pairs:
        if not equals:
            raise InvalidSpec(f"--label {name}: has no value", hint=f"say --label {name}=VALUE")
    return {name: value for name, _, value in pairs}


def seconds_of(flag: str, word: str) -> float:
    """``90s``, ``15m``, ``12h``, ``30d``."""
    number, unit = word[:-1], word[-1:]
    if unit not in UNITS_S or not number.isascii() or not number.isdigit() or not int(number):
        raise InvalidSpec(f"{flag} {word}: not a time", hint="as 90s, 15m, 12h or 30d")
    return float(number) * UNITS_S[unit]


@dataclass(frozen=True, slots=True)
class Put:
    """A file of the host that goes into the sandbox."""

    host: Path
    guest: str


@dataclass(frozen=True, slots=True)
class Get:
    """A file of the sandbox that comes out."""

    guest: str
    host: Path


def put_of(word: str) -> Put:
    host, colon, guest = word.rpartition(":")
    if not (colon and host and guest):
        raise InvalidSpec(f"--put {word}: not HOST:GUEST", hint="as --put data.csv:data.csv")
    source = Path(host)
    return Put(readable(source), guest + source.name if guest.endswith("/") else guest)


def get_of(word: str) -> Get:
    guest, colon, host = word.partition(":")
    if not (colon and host and guest):
        raise InvalidSpec(f"--get {word}: not GUEST:HOST", hint="as --get chart.png:chart.png")
    target = Path(host)
    if host.endswith("/") or target.is_dir():
        target /= PurePosixPath(guest).name
    if not target.parent.is_dir():
        raise RequestError(f"{target.parent}: there is no such folder", hint=f"mkdir -p {target.parent}")
    return Get(guest, target)


def put_here_of(word: str) -> Put:
    """As ``put_of``; a file alone keeps its name."""
    return put_of(word if ":" in word else f"{word}:{Path(word).name}")


def get_here_of(word: str) -> Get:
    """As ``get_of``; a file alone comes into this folder."""
    return get_of(word if ":" in word else f"{word}:{PurePosixPath(word).name}")


def readable(path: Path) -> Path:
    """*path*, if it is a file we can read: better said before a sandbox is made than after."""
    try:
        with path.open("rb") as file:
            if not os.path.isfile(path) and not file.readable():
                raise RequestError(f"{path}: cannot be read")
    except OSError as error:
        raise RequestError(f"{path}: {error.strerror}", hint="it has to be a file you can read") from error
    return path
