# Generated from _async/client.py by tools/generate_sync.py; change that and run it.
"""One daemon over HTTP: requests, streams of lines, errors, and starting it on demand."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any, Self

from casemate.errors import CasemateError, DaemonUnavailable, from_json
from casemate.sdk._sync.beside import in_thread
from casemate.sdk.daemon import ensure_daemon
from casemate.sdk.http import ERROR_STATUS, Params, checked, httpx, mapped, query_of, said_error
from casemate.sdk.streams import LineSplitter
from casemate.sdk.target import Connectable, Target, credential_of, find_target

if TYPE_CHECKING:
    from casemate.sdk._sync import client as threaded
    from casemate.sdk._sync.pools import Pools
    from casemate.sdk._sync.snapshots import Snapshots
    from casemate.sdk._sync.websocket import Socket

CONNECT_S = 5.0
# An unused connection goes before the daemon closes it (after 5 s): a request could cross with that and be lost.
LIMITS = httpx.Limits(max_connections=100, max_keepalive_connections=20, keepalive_expiry=4.0)
PAGE = 1000  # of a list at a time; the daemon gives no more
ANSWER_S = 30.0  # a stream says at least a keep-alive every 5 s; a plain answer takes far less


class Client:
    """Speaks to one daemon. Opens connections as needed; ``aclose`` ends them and it can be used again.

    *api_key*, or else CASEMATE_API_KEY, is sent over TCP; on a unix socket the kernel says who we are.
    """

    def __init__(self, url: str | None = None, *, api_key: str | None = None) -> None:
        self._url, self._api_key = url, api_key
        self.target: Target = find_target(url)
        self._credential = credential_of(self.target, api_key)
        self._http: httpx.Client | None = None
        self._connectable: Connectable | None = None
        self._apart: threaded.Client | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        http, self._http = self._http, None
        connectable, self._connectable = self._connectable, None
        apart, self._apart = self._apart, None
        if apart is not None:
            apart.close()
        if http is not None:
            http.close()
        if connectable is not None:
            connectable.close()

    @property
    def pools(self) -> Pools:
        from casemate.sdk._sync.pools import Pools  # late: it needs this class

        return Pools(self)

    def another(self) -> Client:
        """A client of its own for the same daemon."""
        return Client(self._url, api_key=self._api_key)

    @property
    def snapshots(self) -> Snapshots:
        from casemate.sdk._sync.snapshots import Snapshots

        return Snapshots(self)

    @property
    def apart(self) -> threaded.Client:
        """Another one for the same daemon, for a thread: what must wait for no connection that carries something."""
        from casemate.sdk._sync import client as threaded  # late: most programs never need it

        if self._apart is None:
            self._apart = threaded.Client(self._url, api_key=self._api_key)
        return self._apart

    def health(self) -> dict[str, Any]:
        return self.call("GET", "/v1/health")

    def call(
        self,
        method: str,
        path: str,
        *,
        body: Mapping[str, Any] | None = None,
        params: Params | None = None,
        answer_s: float = ANSWER_S,
        again: bool = False,
        idempotency_key: str | None = None,
    ) -> dict[str, Any]:
        """One request whose answer is an object. Raises what the daemon says, DaemonUnavailable.

        With an *idempotency_key* it can be made *again* without being done twice.
        """
        headers = {"idempotency-key": idempotency_key} if idempotency_key else None
        response = self.request(method, path, body=body, params=params, headers=headers, answer_s=answer_s, again=again)
        with self._json_expected(path):
            answer = response.json()
            if isinstance(answer, dict):
                return answer
            raise ValueError(f"{type(answer).__name__} where an object belongs")

    def pages(self, path: str, what: str, params: Params | None = None, limit: int | None = None) -> list[Any]:
        """All of a list, or its first *limit*, in as many requests as it takes."""
        found: list[Any] = []
        cursor: tuple[tuple[str, str], ...] = ()
        while limit is None or len(found) < limit:
            size = PAGE if limit is None else min(PAGE, limit - len(found))
            answer = self.call("GET", path, params=[*(params or ()), ("limit", str(size)), *cursor])
            found += answer[what]
            following = answer.get("next")
            if not following:
                break
            cursor = (("cursor", following),)
        return found

    def request(
        self,
        method: str,
        path: str,
        *,
        body: Mapping[str, Any] | None = None,
        content: bytes | Iterable[bytes] | None = None,
        params: Params | None = None,
        headers: Mapping[str, str] | None = None,
        answer_s: float | None = ANSWER_S,
        write_s: float | None = ANSWER_S,
        again: bool = False,
    ) -> httpx.Response:
        """A response that is read whole. Asked for *again*, once, when its connection broke; so is any GET."""
        opened = partial(
            self._opened,
            method,
            path,
            body=body,
            content=content,
            params=params,
            headers=headers,
            answer_s=answer_s,
            write_s=write_s,
        )
        try:
            with opened() as response:
                return response
        except DaemonUnavailable as error:
            broke = isinstance(error.__cause__, httpx.NetworkError | httpx.RemoteProtocolError)
            if not broke or not (again or method == "GET"):
                raise
        with opened() as response:
            return response

    @contextmanager
    def stream(
        self,
        method: str,
        path: str,
        *,
        body: Mapping[str, Any] | None = None,
        params: Params | None = None,
        answer_s: float | None = ANSWER_S,
    ) -> Iterator[Iterator[bytes]]:
        """The body of an answer in pieces as it comes; leaving the block early lets go of it."""
        opened = self._opened(method, path, body=body, params=params, answer_s=answer_s, whole=False)
        with opened as response:
            yield self._pieces(response)

    @contextmanager
    def lines(
        self,
        method: str,
        path: str,
        *,
        body: Mapping[str, Any] | None = None,
        params: Params | None = None,
        answer_s: float = ANSWER_S,
    ) -> Iterator[Iterator[dict[str, Any]]]:
        """The events of an answer in NDJSON. An event that says an error is raised."""
        with self.stream(method, path, body=body, params=params, answer_s=answer_s) as pieces:
            yield self._events(pieces)

    @contextmanager
    def socket(self, path: str) -> Iterator[Socket]:
        """A WebSocket to *path*. Raises what the daemon says instead of opening one, DaemonUnavailable."""
        from casemate.sdk._sync.websocket import open_socket  # late: 50 ms that most programs save
        from casemate.sdk.websocket import address_of

        http = self._ready()
        unix = self._connectable.path if self._connectable is not None else None
        with open_socket(address_of(self.target, path, unix, http.headers), self.target) as opened:
            yield opened

    def _pieces(self, response: httpx.Response) -> Iterator[bytes]:
        with mapped(self.target):
            for piece in response.iter_raw():
                if piece:
                    yield piece

    def _events(self, pieces: Iterator[bytes]) -> Iterator[dict[str, Any]]:
        """Who goes on after an ``end`` reads the answer to its own end, so that the connection can be used again."""
        splitter, ended = LineSplitter(), False
        for piece in pieces:
            with self._json_expected("a stream"):
                events = list(splitter.feed(piece))
            for event in events:
                if event.get("event") == "error":
                    raise from_json(event.get("error") or {})
                ended = event.get("event") == "end"
                yield event
        if ended:
            return
        raise DaemonUnavailable(
            f"the daemon at {self.target} ended its answer before it was complete",
            hint="look at its log, run/daemon.log in its home",
        )

    @contextmanager
    def _opened(
        self,
        method: str,
        path: str,
        *,
        body: Mapping[str, Any] | None = None,
        content: bytes | Iterable[bytes] | None = None,
        params: Params | None = None,
        headers: Mapping[str, str] | None = None,
        answer_s: float | None = ANSWER_S,
        write_s: float | None = ANSWER_S,
        whole: bool = True,
    ) -> Iterator[httpx.Response]:
        path = checked(path)
        http = self._ready()
        timeout = httpx.Timeout(connect=CONNECT_S, read=answer_s, write=write_s, pool=CONNECT_S)
        build = partial(http.build_request, method, path, json=body, content=content, timeout=timeout, headers=headers)
        request = build(params=query_of(params)) if params else build()
        with mapped(self.target):
            response = self._send(http, request)
        try:
            if whole or response.status_code >= ERROR_STATUS:
                with mapped(self.target):
                    response.read()
            if response.status_code >= ERROR_STATUS:
                raise said_error(response.status_code, response.content)
            yield response
        finally:
            response.close()

    def _send(self, http: httpx.Client, request: httpx.Request) -> httpx.Response:
        try:
            return http.send(request, stream=True)
        except httpx.ConnectError:
            if self.target.home is None:
                raise
        self.close()  # the daemon has ended since; nothing was sent, so this is not a second time
        return (self._ready()).send(request, stream=True)

    def _ready(self) -> httpx.Client:
        """Where nobody listens on the socket of this user's home, start a daemon. Raises DaemonUnavailable."""
        if self._http is None:
            if self.target.socket is None:
                self._http = httpx.Client(base_url=self.target.base_url, headers=self._credential, limits=LIMITS)
            else:
                in_thread(partial(ensure_daemon, self.target))
                self._connectable = Connectable(self.target.socket)
                # no TLS on a unix socket: leave out reading all the certificates there are
                transport = httpx.HTTPTransport(uds=self._connectable.path, verify=False, limits=LIMITS)
                self._http = httpx.Client(transport=transport, base_url=self.target.base_url, trust_env=False)
        return self._http

    def _json_expected(self, what: str) -> _JsonExpected:
        return _JsonExpected(f"{self.target}, {what}")


class _JsonExpected:
    """Says whose answer it was that was not JSON."""

    def __init__(self, what: str) -> None:
        self._what = what

    def __enter__(self) -> None: ...

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        if isinstance(error, ValueError):
            raise CasemateError(
                f"{self._what}: not the answer of a Casemate daemon: {error}", hint="check CASEMATE_URL"
            ) from error
