"""The chain: unbroken when left alone, and telling when not."""

import anyio
import pytest
import sqlalchemy as sa
from hypothesis import given
from hypothesis import strategies as st
from tests.databases import open_new

from casemate.audit import EventKind, Mark, Tally, Trail
from casemate.audit import trail as trail_module
from casemate.errors import HostError, InvalidSpec


@pytest.fixture
def trail(tmp_path):
    database = open_new(tmp_path / "db")
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
            connection.execute(sa.text(f"DROP TRIGGER IF EXISTS audit_events_no_{verb}"))
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


def cut(trail, since):
    tamper(trail, f"DELETE FROM audit_events WHERE id >= {since}")


@pytest.mark.parametrize("since", [1, 3, 5])
def test_a_tail_that_was_cut_off_is_missed(trail, since):
    fill(trail)
    cut(trail, since)
    assert anyio.run(trail.verify).id == since


def test_a_cut_tail_stays_known_when_the_chain_goes_on(trail):
    fill(trail)
    cut(trail, 4)
    fill(trail, 4)  # past where it once ended
    found = anyio.run(trail.check)
    assert found.broken.id == 4
    assert "the anchor knows event 5" in found.broken.why
    kinds = [e.event for e in anyio.run(trail.listed, "system")]
    assert kinds == ["audit.tail-lost"]


def test_a_tail_written_anew_is_missed(trail):
    fill(trail)
    mark = trail.anchor.read_text()
    cut(trail, 4)
    trail.anchor.unlink()
    fill(trail, 3)
    trail.anchor.write_text(mark)  # the anchor is as it was, the events 4 and 5 are others
    assert anyio.run(trail.verify).id == 5


def test_a_missing_anchor_is_a_warning_for_ever(trail):
    fill(trail)
    trail.anchor.unlink()
    assert len(anyio.run(trail.check).warnings) == 1
    fill(trail)
    found = anyio.run(trail.check)
    assert found.broken is None
    assert [warning.id for warning in found.warnings] == [6]


def test_a_chain_written_anew_is_found_by_a_mark_kept_elsewhere(trail):
    fill(trail)
    mark = anyio.run(trail.check).head
    assert anyio.run(trail.check, mark).broken is None
    cut(trail, 1)
    trail.anchor.unlink()
    fill(trail, 9)
    assert anyio.run(trail.verify) is None  # as the README says: this cannot be seen from here
    assert anyio.run(trail.check, mark).broken.id == mark.id


def test_an_anchor_that_is_none_stops_everything(trail):
    fill(trail)
    trail.anchor.write_text("nonsense")
    with pytest.raises(HostError, match="anchor"):
        anyio.run(trail.verify)
    with pytest.raises(HostError, match="anchor"):
        fill(trail)


def test_a_long_chain_is_read_in_pages(trail, monkeypatch):
    monkeypatch.setattr(trail_module, "PAGE", 3)
    fill(trail, 10)
    assert anyio.run(trail.check).events == 10
    tamper(trail, "UPDATE audit_events SET actor = 'x' WHERE id = 8")
    assert anyio.run(trail.verify).id == 8


@given(st.text(max_size=100))
def test_any_mark_is_understood_or_refused(text):
    try:
        assert Mark.parse(str(Mark.parse(text))) == Mark.parse(text)
    except InvalidSpec:
        return


def test_a_tally_counts_all_and_writes_little(trail):
    async def main():
        tally = Tally(trail, EventKind.AUTH_REFUSED, window_s=3600)  # windows end here when the test says so
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(tally.run)
            for number in range(500):
                await tally.note(tenant="t", actor="a", subject=str(number % 50), detail={})
                if number == 249:
                    await tally.flush()
            tasks.cancel_scope.cancel()
        return [e for e in await trail.listed("t") + await trail.listed("system") if e.event == "auth.refused"]

    events = anyio.run(main)
    assert sum(event.detail["count"] for event in events) == 500
    assert len(events) == 200  # in each of two windows the first of each subject, and the rest of each as one


def test_what_could_not_be_recorded_is_counted_still(trail):
    async def main():
        tally = Tally(trail, EventKind.AUTH_REFUSED)
        trail.anchor.write_text("as if the disk had failed")
        with pytest.raises(HostError):
            await tally.note(tenant="t", actor="a", subject="s", detail={})
        await tally.note(tenant="t", actor="a", subject="s", detail={})
        with pytest.raises(HostError):
            await tally.flush()
        trail.anchor.unlink()
        await tally.flush()
        return [event.detail["count"] for event in await trail.listed("t")]

    assert anyio.run(main) == [2]


def test_news_miss_nothing(trail):
    async def main():
        seen = 0
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(lambda: record_many(trail, 50))
            with anyio.fail_after(10):
                while seen < 50:
                    more = trail.news.next()
                    found = await trail.after("t", seen, limit=7)
                    seen += len(found)
                    if not found:
                        await more.wait()

    anyio.run(main)


async def record_many(trail, count):
    for number in range(count):
        await trail.record("sandbox.killed", tenant="t", subject=str(number))
