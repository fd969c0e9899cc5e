"""A request's body: whole, within a size and a time, or in pieces that keep coming."""

from __future__ import annotations

from collections.abc import AsyncIterator

import anyio
from starlette.requests import Request

from casemate.api.errors import TooLarge, TooSlow

MAX_JSON_BYTES = 2**20
BODY_S = 30.0
PIECE_S = 60.0


async def read_whole(request: Request, limit: int = MAX_JSON_BYTES) -> bytes:
    """Raises TooLarge over *limit* bytes, TooSlow when it is not there within BODY_S."""
    body = bytearray()
    try:
        with anyio.fail_after(BODY_S):
            async for piece in request.stream():
                body += piece
                if len(body) > limit:
                    raise TooLarge(f"the body is over {limit} bytes", hint="large input goes through files or stdin")
    except TimeoutError as error:
        raise TooSlow(f"the body was not whole within {BODY_S:g} s") from error
    return bytes(body)


async def pieces(request: Request) -> AsyncIterator[bytes]:
    """The body as it comes, of any length. Raises TooSlow when nothing comes for PIECE_S."""
    stream = request.stream()
    while True:
        try:
            with anyio.fail_after(PIECE_S):
                piece = await anext(stream)
        except StopAsyncIteration:
            return
        except TimeoutError as error:
            raise TooSlow(f"nothing more of the body came for {PIECE_S:g} s") from error
        yield piece
