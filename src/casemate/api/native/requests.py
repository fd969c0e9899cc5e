"""From a request to checked values: bodies and query strings as pydantic models, paths to handles."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, TypeVar, get_origin

import anyio
import pydantic
from pydantic import BaseModel, ConfigDict
from starlette.requests import HTTPConnection, Request

from casemate.api.auth import principal
from casemate.api.reading import MAX_JSON_BYTES, read_whole
from casemate.errors import GuestError, InvalidSpec, ProtocolViolation, RequestError, StateConflict, VmmError
from casemate.sandbox import Handle, Link, Reason, Sandboxes

ENDING_S = 2.0  # how long a lost link waits to be told why, before its own words must do


class Body(BaseModel):
    """A JSON body: the right kinds, nothing unknown."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)


class Query(BaseModel):
    """A query string: everything is text and is converted."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


B = TypeVar("B", bound=Body)
T = TypeVar("T")
Q = TypeVar("Q", bound=Query)


def parsed(kind: type[B] | pydantic.TypeAdapter[T], text: str | bytes) -> B | T:
    """JSON text as a body. Raises RequestError where it is not JSON, InvalidSpec naming the first wrong field."""
    try:
        return kind.validate_json(text) if isinstance(kind, pydantic.TypeAdapter) else kind.model_validate_json(text)
    except pydantic.ValidationError as error:
        raise _said(error) from error


async def read_body(request: Request, model: type[B], limit: int = MAX_JSON_BYTES) -> B:
    """The request's JSON as *model*; no body counts as ``{}``.

    Raises TooLarge over *limit* bytes, TooSlow, RequestError where it is not JSON, InvalidSpec naming the first
    wrong field.
    """
    body = await read_whole(request, limit)
    try:
        return model.model_validate_json(body or b"{}")
    except pydantic.ValidationError as error:
        raise _said(error) from error


def read_query(request: HTTPConnection, model: type[Q]) -> Q:
    """Raises InvalidSpec naming the first wrong parameter."""
    given: dict[str, Any] = {}
    for name, value in request.query_params.multi_items():
        field = model.model_fields.get(name)
        if field is not None and get_origin(field.annotation) is list:
            given.setdefault(name, []).append(value)
        elif name in given:
            raise InvalidSpec("a query parameter is given twice", evidence={"field": name[:80]})
        else:
            given[name] = value
    try:
        return model.model_validate(given)
    except pydantic.ValidationError as error:
        raise _said(error) from error


def find_handle(request: HTTPConnection, sandboxes: Sandboxes) -> Handle:
    """The live sandbox the path names. Raises NotFound: also for another tenant's."""
    return sandboxes.get(principal(request).tenant, request.path_params["ref"])


@asynccontextmanager
async def using(handle: Handle) -> AsyncIterator[Link]:
    """A running sandbox's link, and that it is in use meanwhile; a suspended one is resumed first.

    Raises StateConflict unless it runs or can be resumed, or when somebody ended it meanwhile. A guest that
    breaks the protocol loses its machine.
    """
    async with handle.reach() as link:
        try:
            yield link
        except ProtocolViolation as error:
            handle.ask_stop(Reason.PROTOCOL_VIOLATION, error.message)
            raise
        except (GuestError, VmmError) as error:
            if link.failure is not None:  # the machine is gone, not only a channel: say why it ended
                with anyio.move_on_after(ENDING_S):
                    await handle.ended.wait()
                raise _why(handle, error) from error
            raise


def _why(handle: Handle, error: GuestError | VmmError) -> GuestError | VmmError | StateConflict:
    reason = handle.info.state_reason
    evidence = {**error.evidence, "state_reason": reason.code if reason else None}
    match reason.code if reason else None:
        case None | Reason.PROTOCOL_VIOLATION | Reason.GUEST_SILENT:
            return error
        case Reason.VMM_DIED:
            return VmmError(f"sandbox {handle.info.id}: {reason.message if reason else ''}", evidence=evidence)
        case _:
            return StateConflict(
                f"sandbox {handle.info.id} ended: {reason.message if reason else ''}", evidence=evidence
            )


def _said(error: pydantic.ValidationError) -> RequestError:
    first = error.errors(include_url=False, include_input=False)[0]
    field = ".".join(str(part) for part in first["loc"])[:200]
    if first["type"] == "json_invalid":
        return RequestError(f"the body is not JSON: {first['msg']}")
    if not field:
        return InvalidSpec(f"the body must be an object: {first['msg']}")
    if first["type"] == "extra_forbidden":
        return InvalidSpec(f"{field}: there is no such field", evidence={"field": field})
    return InvalidSpec(f"{field}: {first['msg']}", evidence={"field": field})
