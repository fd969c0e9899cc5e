"""Fork and snapshot, as the SDK says them."""

from __future__ import annotations

import anyio
import pytest
from tests.unit.sdk.fake_daemon import FakeDaemon

from casemate import errors
from casemate.sdk import AsyncSandbox, Client, Sandbox


def test_copies_are_sandboxes_like_any_other(fake: FakeDaemon) -> None:
    with Sandbox.create(name="one", labels={"a": "b"}) as parent:
        first, second = parent.fork(2)
        assert {first.info.forked_from, second.info.forked_from} == {parent.id}
        assert (first.info.name, first.info.labels, parent.info.forked_from) == (None, {"a": "b"}, None)
        assert first.commands.run(["echo", "here"]).stdout == "here\n"
        with second:
            assert len(Sandbox.list()) == 3
        assert [info.id for info in Sandbox.list()] == [parent.id, first.id]
        assert "idempotency-key" in fake.requests[-1].headers
    assert first.refresh().state == "running", "a copy outlives what it was copied from"
    first.kill()
    assert Sandbox.list() == []


def test_labels_beside_its_own_and_progress(fake: FakeDaemon) -> None:
    with Sandbox.create(labels={"a": "b"}) as parent:
        told: list[tuple[str, str, float | None]] = []
        (copy,) = parent.fork(labels={"c": "d"}, progress=lambda *said: told.append(said))
        with copy:
            assert copy.info.labels == {"a": "b", "c": "d"}
        assert told == [("fork", "1 of 1", 1.0)]
        with pytest.raises(errors.InvalidSpec, match="count is 0"):
            parent.fork(0)


def test_a_client_that_was_given_is_the_copies_too(fake: FakeDaemon) -> None:
    with Client() as client, Sandbox.create(client=client) as parent:
        (copy,) = parent.fork()
        assert copy._client is client
        copy.kill()
        assert client.health()["status"] == "ok"


def test_a_snapshot_is_told_whole(fake: FakeDaemon) -> None:
    with Sandbox.create() as sandbox:
        kept = sandbox.snapshot("trained", "good")
        assert (kept["name"], kept["version"], kept["tag"], kept["parent"]) == ("trained", 3, "good", "python@1")
        assert (kept["pause_ms"], kept["frozen_ms"], kept["took_ms"]) == (12.4, 30.2, 400.6)
        assert fake.starts == [{"name": "trained", "tag": "good"}]
        assert sandbox.snapshot("trained")["tag"] is None


def test_the_same_with_await(fake: FakeDaemon) -> None:
    async def main() -> None:
        async with await AsyncSandbox.create() as parent:
            first, second = await parent.fork(2)
            async with first, second:
                assert (await second.refresh()).forked_from == parent.id
            assert (await parent.snapshot("trained"))["version"] == 3

    anyio.run(main)


def test_a_daemon_that_cannot_fork_is_understood(fake: FakeDaemon) -> None:
    with Sandbox.create() as sandbox:
        assert "forked_from" not in sandbox.info.raw
        assert sandbox.info.forked_from is None
