"""Rows of the table ``answers``: what was answered to a request with an Idempotency-Key, for a day."""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass

import sqlalchemy as sa

from casemate.errors import QuotaExceeded
from casemate.storage.schema import answers

MAX_ANSWERS = 10_000  # of one tenant, within a day


@dataclass(frozen=True, slots=True)
class AnswerRow:
    """*request* is the hash of what was asked; a *body* of None could not be kept."""

    tenant: str
    host_id: str
    key: str
    request: str
    status: int
    media_type: str
    body: bytes | None
    created_at: float
    expires_at: float


def find_or_admit(connection: sa.Connection, tenant: str, key: str) -> AnswerRow | None:
    """The answer that was given to *key*; None when there is none and one may be added.

    Raises QuotaExceeded where a tenant has too many answers of one day.
    """
    now = time.time()
    names = AnswerRow.__slots__
    which = (answers.c.tenant == tenant) & (answers.c.key == key) & (answers.c.expires_at > now)
    row = connection.execute(sa.select(*(answers.c[name] for name in names)).where(which)).mappings().first()
    if row is not None:
        return AnswerRow(**row)
    connection.execute(answers.delete().where(answers.c.expires_at <= now))
    count = sa.select(sa.func.count()).select_from(answers).where(answers.c.tenant == tenant)
    if connection.execute(count).scalar_one() >= MAX_ANSWERS:
        raise QuotaExceeded(
            f"{MAX_ANSWERS} requests with an Idempotency-Key within a day", hint="send none where none is needed"
        )
    return None


def add(connection: sa.Connection, row: AnswerRow) -> None:
    connection.execute(answers.insert().values(asdict(row) | {"updated_at": row.created_at, "revision": 1}))
