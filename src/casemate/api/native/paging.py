"""Lists a piece at a time: ``limit``, an opaque ``cursor``, and ``label=K=V`` as often as one likes."""

from __future__ import annotations

import binascii
import json
from base64 import urlsafe_b64decode, urlsafe_b64encode
from collections.abc import Callable, Mapping, Sequence
from typing import TypeVar

from pydantic import Field, field_validator

from casemate.api.native.requests import Query
from casemate.errors import InvalidSpec

MAX_PAGE = 1000
MAX_CURSOR_CHARS = 512
T = TypeVar("T")
Place = tuple[str | int | float, ...]


class PageQuery(Query):
    limit: int = Field(MAX_PAGE, ge=1, le=MAX_PAGE)
    cursor: str | None = Field(None, max_length=MAX_CURSOR_CHARS)


class LabelledQuery(PageQuery):
    """*label* is ``K=V``, or ``K`` for any value; all that are given must match."""

    label: list[str] = Field(default_factory=list, max_length=64)

    @field_validator("label")
    @classmethod
    def _named(cls, labels: list[str]) -> list[str]:
        if any(not label.partition("=")[0] for label in labels):
            raise ValueError("it must be K=V, or K")
        return labels

    def matches(self, labels: Mapping[str, str]) -> bool:
        pairs = (label.partition("=") for label in self.label)
        return all(name in labels and (not sign or labels[name] == value) for name, sign, value in pairs)


def page(found: Sequence[T], query: PageQuery, place: Callable[[T], Place]) -> tuple[list[T], str | None]:
    """Those of *found*, which is in the order of *place*, that follow the cursor; and the next cursor, if any.

    Raises InvalidSpec for a cursor that is none of ours.
    """
    after = _place_in(query.cursor) if query.cursor else None
    try:
        rest = [item for item in found if after is None or place(item) > after]
    except TypeError as error:
        raise _no_cursor() from error
    shown = rest[: query.limit]
    return shown, _cursor(place(shown[-1])) if len(rest) > len(shown) else None


def _cursor(place: Place) -> str:
    return urlsafe_b64encode(json.dumps(place, separators=(",", ":")).encode()).decode().rstrip("=")


def _place_in(cursor: str) -> Place:
    try:
        found = json.loads(urlsafe_b64decode(cursor + "=" * (-len(cursor) % 4)))
    except (binascii.Error, ValueError) as error:
        raise _no_cursor() from error
    if not isinstance(found, list):
        raise _no_cursor()
    return tuple(found)


def _no_cursor() -> InvalidSpec:
    return InvalidSpec("cursor: it is none of ours", hint="send back what the last answer's `next` was")
