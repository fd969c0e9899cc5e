"""What a handler takes and gives, declared on it; the OpenAPI document is made of these."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

from pydantic import BaseModel

from casemate.api.native.requests import Body, Query

JSON = "application/json"
NDJSON = "application/x-ndjson"
OCTETS = "application/octet-stream"
HandlerT = TypeVar("HandlerT", bound=Callable[..., Any])
_ATTRIBUTE = "__operation__"


@dataclass(frozen=True, slots=True)
class Operation:
    """*gives* and *takes* are media types; with *takes* the body is bytes, not JSON."""

    summary: str
    body: type[Body] | None = None
    query: type[Query] | None = None
    answer: type[BaseModel] | None = None
    status: int = 200
    gives: tuple[str, ...] = (JSON,)
    takes: str | None = None


def operation(summary: str, **declared: Any) -> Callable[[HandlerT], HandlerT]:
    """Declare a handler: ``@operation("List the sandboxes", query=ListQuery, answer=SandboxList)``."""
    made = Operation(summary, **declared)

    def mark(handler: HandlerT) -> HandlerT:
        setattr(handler, _ATTRIBUTE, made)
        return handler

    return mark


def find_operation(handler: Callable[..., Any]) -> Operation | None:
    found = getattr(handler, _ATTRIBUTE, None)
    return found if isinstance(found, Operation) else None
