"""The chain: unbroken when left alone, and telling when not."""

import anyio
import pytest
import sqlalchemy as sa

from casemate import storage
from casemate.audit import EventKind, Trail


@pytest.fixture
def trail(tmp_path):
    database = storage.open(tmp_path / "db")
    yield Trail(database, "host")
    database.close()


def fill(trail, count=5):
    async def main():
        for number in range(count):
            await trail.record(
                EventKind.SANDBOX_CREATED,
                tenant="local",
                subject=f"s{number}",
                detail={"n": number, "x": "ü"},
            )

    anyio.run(main)


def tamper(trail, statement):
    def act(connection):
        for verb in ("update", "delete"):
            connection.execute(sa.text(f"DROP TRIGGER audit_events_no_{verb}"))
        connection.execute(sa.text(statement))

    trail.database.write_now(act)


def test_the_first_event_follows_zeros_and_each_the_one_before(trail):
    fill(trail)
    newest = anyio.run(trail.listed, "local")
    assert [e.subject for e in newest] == ["s4", "s3", "s2", "s1", "s0"]
    assert newest[-1].prev_hash == "0" * 64
    assert newest[0].prev_hash == newest[1].hash()
    assert anyio.run(trail.verify) is None
    assert anyio.run(trail.listed, "other") == []


@pytest.mark.parametrize("verb", ["UPDATE audit_events SET actor = 'x'", "DELETE FROM audit_events"])
def test_rows_are_only_ever_added(trail, verb):
    fill(trail)
    with pytest.raises(sa.exc.IntegrityError, match="append-only"):
        trail.database.write_now(lambda c: c.execute(sa.text(verb)))


@pytest.mark.parametrize(
    ("statement", "where"),
    [
        ("UPDATE audit_events SET actor = 'x' WHERE id = 3", 3),
        ("UPDATE audit_events SET detail = '{}' WHERE id = 1", 1),
        ("DELETE FROM audit_events WHERE id = 2", 3),
        ("UPDATE audit_events SET hash = 'x' WHERE id = 4", 4),
    ],
)
def test_what_was_changed_is_found(trail, statement, where):
    fill(trail)
    tamper(trail, statement)
    assert anyio.run(trail.verify).id == where


def test_events_recorded_at_once_make_one_chain(trail):
    async def main():
        async with anyio.create_task_group() as tasks:
            for number in range(20):
                tasks.start_soon(lambda n=number: trail.record("sandbox.killed", tenant="t", subject=str(n)))
        return await trail.verify(), len(await trail.listed("t"))

    assert anyio.run(main) == (None, 20)


def test_an_unknown_kind_is_refused_and_a_guests_words_are_cut(trail):
    async def main():
        with pytest.raises(ValueError, match="no-such"):
            await trail.record("no-such", tenant="t", subject="s")
        event = await trail.record("image.built", tenant="t", subject="s", detail={"message": "a" * 10**6})
        return len(event.detail["message"])

    assert anyio.run(main) == 2000
