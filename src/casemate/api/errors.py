"""Errors over HTTP: one table of class → status, and the JSON of each."""

from __future__ import annotations

import json

from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.types import ExceptionHandler

from casemate import errors

# The class itself or its nearest ancestor counts.
STATUS: dict[type[errors.CasemateError], int] = {
    errors.RequestError: 400,
    errors.Forbidden: 403,
    errors.NotFound: 404,
    errors.StateConflict: 409,
    errors.SnapshotMissing: 409,
    errors.FileRefused: 409,
    errors.ExecRefused: 422,
    errors.QuotaExceeded: 429,
    errors.CapacityError: 503,
    errors.HostError: 500,
    errors.VmmError: 502,
    errors.GuestError: 502,
    errors.CasemateError: 500,
}
TOO_LARGE = 413


class TooLarge(errors.RequestError):
    """A JSON body over its limit; the rest of it is not read."""


def status_of(error: errors.CasemateError) -> int:
    if isinstance(error, TooLarge):
        return TOO_LARGE
    if isinstance(error, errors.FileRefused) and error.evidence.get("errno") == "ENOENT":
        return 404
    return next(STATUS[kind] for kind in type(error).__mro__ if kind in STATUS)


def line(error: errors.CasemateError) -> bytes:
    """*error* as one line of JSON; what its evidence holds that JSON does not know becomes text."""
    return json.dumps(error.to_json(), default=str, separators=(",", ":")).encode() + b"\n"


def answer(error: errors.CasemateError) -> Response:
    return Response(line(error), status_of(error), media_type="application/json")


def the_error(raised: BaseException) -> errors.CasemateError | None:
    """The one of ours in what task groups wrapped it into; None where there is something else as well."""
    while isinstance(raised, BaseExceptionGroup) and len(raised.exceptions) == 1:
        raised = raised.exceptions[0]
    return raised if isinstance(raised, errors.CasemateError) else None


async def _ours(request: Request, raised: Exception) -> Response:
    assert isinstance(raised, errors.CasemateError)
    return answer(raised)


async def _starlettes(request: Request, raised: Exception) -> Response:
    """No such route, or not with this method."""
    assert isinstance(raised, HTTPException)
    if raised.status_code == 404:
        return answer(errors.NotFound(f"there is nothing at {request.url.path[:200]}"))
    error = errors.RequestError(f"{request.method} is not served at {request.url.path[:200]}")
    return JSONResponse(error.to_json(), raised.status_code, headers=raised.headers)


async def _gone(request: Request, raised: Exception) -> Response:
    return Response(status_code=400)  # nobody reads it: the client left before its request was whole


async def _unforeseen(request: Request, raised: Exception) -> Response:
    """A bug of ours, or several errors at once; the server logs it with its traceback."""
    found = the_error(raised)
    return answer(found or errors.CasemateError("an error that was not foreseen", hint="see the daemon's log"))


HANDLERS: dict[type[Exception], ExceptionHandler] = {
    errors.CasemateError: _ours,
    HTTPException: _starlettes,
    ClientDisconnect: _gone,
    Exception: _unforeseen,
}
