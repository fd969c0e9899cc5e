"""Which names a request over TCP may call us by: a web page whose own name leads here (DNS rebinding) is refused."""

from __future__ import annotations

import ipaddress
from collections.abc import Sequence
from urllib.parse import urlsplit

from casemate.errors import Forbidden

LOOPBACK = ("localhost", "127.0.0.1", "::1")


def names_of(listen_host: str, allowed: Sequence[str]) -> frozenset[str]:
    """The names a listener answers to: those of the loopback, its own address unless it means all, and *allowed*."""
    own = () if is_wildcard(listen_host) else (listen_host,)
    return frozenset(name.strip("[]").lower() for name in (*LOOPBACK, *own, *allowed))


def is_wildcard(host: str) -> bool:
    address = _address(host)
    return not host or (address is not None and address.is_unspecified)


def is_loopback(host: str) -> bool:
    """Whether an address to listen on can be reached from this host only."""
    address = _address(host)
    return host == "localhost" or (address is not None and address.is_loopback)


def check_host(values: Sequence[str], names: frozenset[str]) -> None:
    """Raises Forbidden unless there is one Host header, and it names us."""
    if len(values) != 1 or _host_in(f"//{values[0]}") not in names:
        said = values[0][:100] if values else "none"
        raise Forbidden(f"this daemon is not the host {said!r}", hint="name it when it is started: --allow-host NAME")


def check_origin(values: Sequence[str], names: frozenset[str]) -> None:
    """Raises Forbidden for a request that a web page of another site makes. Programs send no Origin."""
    for value in values:
        if _host_in(value) not in names:
            raise Forbidden(
                f"a page of {value[:100]!r} may not use this daemon",
                hint="name its host when the daemon is started: --allow-host NAME",
            )


def _host_in(url: str) -> str | None:
    try:
        return urlsplit(url).hostname  # in lower case, without brackets and port
    except ValueError:
        return None


def _address(host: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        return ipaddress.ip_address(host.strip("[]"))
    except ValueError:
        return None
