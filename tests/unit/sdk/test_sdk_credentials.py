"""What the SDK sends of a credential, and where; lists in pages; errors as problem details."""

from __future__ import annotations

import pytest
from tests.unit.sdk.fake_daemon import FakeDaemon

from casemate import errors
from casemate.sdk import Client, Sandbox
from casemate.sdk.http import said_error
from casemate.sdk.target import credential_of, find_target

KEY = "cm_000000000000_x"


def test_a_key_goes_over_tcp_and_not_over_a_unix_socket() -> None:
    remote, local = find_target("https://h"), find_target("unix:///s")
    assert credential_of(remote, None, {"CASEMATE_API_KEY": KEY}) == {"authorization": f"Bearer {KEY}"}
    assert credential_of(remote, "other", {"CASEMATE_API_KEY": KEY}) == {"authorization": "Bearer other"}
    assert credential_of(local, KEY, {"CASEMATE_API_KEY": KEY}) is None
    assert credential_of(remote, None, {}) is None
    for wrong in ("ü", "a\nb"):
        with pytest.raises(errors.InvalidSpec):
            credential_of(remote, wrong, {})


def test_create_can_be_made_again_without_being_done_twice(fake: FakeDaemon) -> None:
    for _ in range(2):
        Sandbox.create().kill()
    sent = [request.headers["idempotency-key"] for request in fake.requests]
    assert len(set(sent)) == 2
    with Sandbox.create(attached=True):
        assert "idempotency-key" not in fake.requests[-1].headers  # a stream cannot be repeated


def test_a_list_is_fetched_to_its_end_or_its_limit(fake: FakeDaemon) -> None:
    with Client() as client:
        made = [Sandbox.create(labels={"n": str(n % 2)}, client=client).id for n in range(8)]
        assert [info.id for info in Sandbox.list(client=client)] == made
        assert [info.id for info in Sandbox.list(client=client, limit=5)] == made[:5]
        assert [info.id for info in Sandbox.list(client=client, labels={"n": "1"})] == made[1::2]


def test_problem_details_are_our_errors() -> None:
    body = (
        b'{"type":"urn:casemate:error:host-full","title":"Host full","status":503,"detail":"no room",'
        b'"code":"host-full","hint":"wait","retry":"safe","evidence":{"retry_after_s":3}}'
    )
    error = said_error(503, body)
    assert isinstance(error, errors.HostFull)
    assert (error.message, error.hint, error.retry) == ("no room", "wait", errors.Retry.SAFE)
    assert error.evidence == {"retry_after_s": 3}
    assert errors.from_json(errors.HostFull("x").to_json()).message == "x"
