"""httpx, and its errors as ours: the one border between the two."""

from __future__ import annotations

import json
import sys
import types
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from casemate.errors import CasemateError, DaemonUnavailable, InvalidSpec, Retry, from_json


def _import_httpx() -> types.ModuleType:
    """httpx without its command line tool, which costs a third of its import (click, rich, pygments)."""
    if "httpx" in sys.modules:
        return sys.modules["httpx"]
    stub = types.ModuleType("httpx._main")
    stub.main = lambda: None  # type: ignore[attr-defined]
    known = sys.modules.setdefault("httpx._main", stub)
    try:
        import httpx

        return httpx
    finally:
        if known is stub:
            del sys.modules["httpx._main"]


_import_httpx()
import httpx  # noqa: E402 - the same module, for type checkers

__all__ = ["ERROR_STATUS", "Params", "checked", "httpx", "mapped", "query_of", "said_error"]

ERROR_STATUS = 400
Params = Mapping[str, str] | Sequence[tuple[str, str]]  # pairs where a name comes more than once


def query_of(params: Params) -> dict[str, list[str]]:
    """As httpx takes it."""
    found: dict[str, list[str]] = {}
    for name, value in params.items() if isinstance(params, Mapping) else params:
        found.setdefault(name, []).append(value)
    return found


def checked(path: str) -> str:
    """*path*, which httpx would bend where an id in it is ``..`` or has a ``?``: into that of something else."""
    if "?" in path or "#" in path or not {".", ".."}.isdisjoint(path.split("/")):
        raise InvalidSpec(f"{path[:200]!r} cannot be asked for: an id in it is none")
    return path


@contextmanager
def mapped(target: object) -> Iterator[None]:
    """What httpx raises, as errors that say who must act."""
    try:
        yield
    except (httpx.ConnectError, httpx.ConnectTimeout) as error:
        raise DaemonUnavailable(
            f"no daemon answers at {target}", hint="start one with: casemate serve", retry=Retry.SAFE
        ) from error
    except httpx.TimeoutException as error:
        raise DaemonUnavailable(
            f"the daemon at {target} did not answer in time", hint="look at its log, run/daemon.log in its home"
        ) from error
    except httpx.TransportError as error:
        raise DaemonUnavailable(
            f"the connection to the daemon at {target} broke: {error}",
            hint="look at its log, run/daemon.log in its home",
        ) from error
    except httpx.InvalidURL as error:
        raise CasemateError(f"{target}: {error}") from error


def said_error(status: int, body: bytes) -> CasemateError:
    """The error a response carries."""
    try:
        parsed: Any = json.loads(body)
    except ValueError:
        parsed = None
    if isinstance(parsed, dict) and "code" in parsed:
        return from_json(parsed)
    text = body[:200].decode(errors="replace").strip()
    return CasemateError(f"HTTP status {status}: {text}", hint="is CASEMATE_URL a Casemate daemon?")
