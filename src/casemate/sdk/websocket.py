"""What both kinds of WebSocket share: where they connect, and their errors as ours. Imported when one is opened."""

from __future__ import annotations

import ssl
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from urllib.parse import urlsplit

from websockets.exceptions import ConnectionClosed, InvalidHandshake, InvalidStatus, WebSocketException

from casemate.errors import CasemateError, DaemonUnavailable, Retry
from casemate.sdk.http import said_error
from casemate.sdk.target import Target

OPEN_S = 10.0
CLOSE_S = 5.0
SILENT_S = 60.0  # the daemon pings three times as often
MESSAGE_BYTES = 2**20


@dataclass(frozen=True, slots=True)
class Address:
    """*unix*: the path of a socket to connect to; otherwise *host* and *port* of *uri*."""

    uri: str
    unix: str | None
    host: str
    port: int
    tls: ssl.SSLContext | None
    headers: Mapping[str, str]


def address_of(target: Target, path: str, unix: str | None, headers: Mapping[str, str]) -> Address:
    """*headers* are the HTTP client's own; of them a WebSocket needs the credential only."""
    parts = urlsplit(target.base_url)
    tls = ssl.create_default_context() if parts.scheme == "https" else None
    uri = f"{'wss' if tls else 'ws'}://{parts.netloc}{parts.path}{path}"
    credential = {name: value for name, value in headers.items() if name.lower() == "authorization"}
    return Address(uri, unix, parts.hostname or "", parts.port or (443 if tls else 80), tls, credential)


@contextmanager
def mapped(target: Target) -> Iterator[None]:
    """What opening and using a WebSocket raises, as errors that say who must act."""
    try:
        yield
    except InvalidStatus as error:
        raise said_error(error.response.status_code, bytes(error.response.body or b"")) from error
    except InvalidHandshake as error:
        raise CasemateError(f"{target}: no WebSocket: {error}", hint="is CASEMATE_URL a Casemate daemon?") from error
    except (ConnectionClosed, WebSocketException) as error:
        raise broken(target, error) from error
    except TimeoutError as error:
        raise DaemonUnavailable(f"the daemon at {target} did not answer in time") from error
    except OSError as error:
        raise broken(target, error) from error


def broken(target: Target, why: object) -> DaemonUnavailable:
    return DaemonUnavailable(
        f"the connection to the daemon at {target} broke: {why}",
        hint="look at its log, run/daemon.log in its home",
        retry=Retry.UNKNOWN,
    )
