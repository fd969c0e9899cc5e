"""Both kinds of WebSocket client against another implementation's server."""

from __future__ import annotations

import http
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import anyio
import pytest
from websockets.sync.server import ServerConnection, unix_serve

from casemate.errors import DaemonUnavailable, NotFound
from casemate.sdk._async import websocket as on_asyncio
from casemate.sdk._sync import websocket as on_threads
from casemate.sdk.target import Target, find_target
from casemate.sdk.websocket import address_of

TARGET = Target("http://casemate", Path("/nowhere"))
SIZE = 16 << 20


@contextmanager
def serving(folder: Path, act: Callable[[ServerConnection], None], **settings: object) -> Iterator[str]:
    path = str(folder / "sock")
    with unix_serve(act, path, compression=None, **settings) as server:  # type: ignore[arg-type]
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield path
        finally:
            server.shutdown()
            thread.join()


def echo(there: ServerConnection) -> None:
    for message in there:
        there.send(message)


def test_messages_go_and_come(tmp_path: Path) -> None:
    with serving(tmp_path, echo) as path, on_threads.open_socket(address_of(TARGET, "/x", path, {}), TARGET) as here:
        for message in ("text", "ü", b"", b"bytes", b"x" * 200_000):
            here.send(message)
            assert here.receive() == message


def test_both_directions_may_be_full(tmp_path: Path) -> None:
    """The server does not read on before what it sends is read: a client that waits with a lock in hand never ends."""
    with serving(tmp_path, echo) as path, on_threads.open_socket(address_of(TARGET, "/x", path, {}), TARGET) as here:
        piece = bytes(65_536)
        sender = threading.Thread(target=lambda: [here.send(piece) for _ in range(SIZE // len(piece))], daemon=True)
        sender.start()
        count = 0
        while count < SIZE:
            got = here.receive()
            assert isinstance(got, bytes)
            count += len(got)
        sender.join(10)
        assert not sender.is_alive()


def test_a_message_in_pieces_is_one(tmp_path: Path) -> None:
    with (
        serving(tmp_path, lambda there: there.send(iter(["a", "b", "c"]))) as path,
        on_threads.open_socket(address_of(TARGET, "/x", path, {}), TARGET) as here,
    ):
        assert here.receive() == "abc"
        assert here.receive() is None


def test_a_refusal_is_the_daemons_error(tmp_path: Path) -> None:
    body = '{"code": "not-found", "message": "there is no sandbox", "hint": "", "retry": "never", "evidence": {}}'

    def refuse(there: ServerConnection, request: object) -> object:
        return there.respond(http.HTTPStatus.NOT_FOUND, body)

    with serving(tmp_path, echo, process_request=refuse) as path:
        address = address_of(TARGET, "/x", path, {})
        with pytest.raises(NotFound, match="no sandbox"), on_threads.open_socket(address, TARGET):
            pass

        async def main() -> None:
            async with on_asyncio.open_socket(address, TARGET):
                pass

        with pytest.raises(NotFound, match="no sandbox"):
            anyio.run(main)


def test_a_connection_that_breaks_says_so(tmp_path: Path) -> None:
    with serving(tmp_path, lambda there: there.close(1011, "no more")) as path:
        address = address_of(TARGET, "/x", path, {})
        with on_threads.open_socket(address, TARGET) as here, pytest.raises(DaemonUnavailable, match="no more"):
            here.receive()

        async def main() -> None:
            async with on_asyncio.open_socket(address, TARGET) as here:
                await here.receive()

        with pytest.raises(DaemonUnavailable, match="no more"):
            anyio.run(main)
    with pytest.raises(DaemonUnavailable), on_threads.open_socket(address_of(TARGET, "/x", path, {}), TARGET):
        pass


def test_where_it_goes() -> None:
    plain = address_of(find_target("http://host:8000/base"), "/v1", None, {"Authorization": "Bearer x", "Accept": "y"})
    assert (plain.uri, plain.host, plain.port, plain.tls) == ("ws://host:8000/base/v1", "host", 8000, None)
    assert plain.headers == {"Authorization": "Bearer x"}
    secure = address_of(find_target("https://host"), "/v1", None, {})
    assert (secure.uri, secure.port) == ("wss://host/v1", 443)
    assert secure.tls is not None
