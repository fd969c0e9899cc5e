"""The hand-shake: what it applies, in which order, what it proves, and what it refuses."""

from __future__ import annotations

import time
from dataclasses import replace
from typing import Any

import pytest

from casemate.errors import InvalidSpec, ProtocolViolation
from casemate.guest.handshake import Handshake, Hello, hosts, parse
from casemate.sandbox import Introduction


class Noted:
    """A machine that notes what is done to it."""

    def __init__(self) -> None:
        self.acts: list[str] = []

    def add_entropy(self, entropy: bytes) -> None:
        self.acts.append(f"entropy {len(entropy)}")

    def set_clock(self, wall_clock_ns: int) -> None:
        self.acts.append("clock")

    def set_identity(self, hello: Hello, boot_id: str) -> None:
        self.acts.append(f"identity {hello.hostname}")


def shake(introduction: Introduction, machine: Noted | None = None) -> dict[str, Any]:
    return Handshake(machine or Noted(), "0").apply(parse(introduction.hello()))  # type: ignore[arg-type]


def test_entropy_comes_first_and_the_proof_is_believed() -> None:
    machine, introduction, sent_ns = Noted(), Introduction("abcdefghijklmnop"), time.time_ns()
    ready = shake(introduction, machine)
    assert machine.acts == ["entropy 64", "clock", "identity abcdefghijkl"]
    introduction.check(ready, sent_ns, time.time_ns())


@pytest.mark.parametrize("name", ["proof", "boot_id", "wall_clock_ns", "generation"])
def test_a_changed_answer_is_not_believed(name: str) -> None:
    introduction, sent_ns = Introduction("guest"), time.time_ns()
    ready = shake(introduction)
    ready[name] = ready[name] + 1 if isinstance(ready[name], int) else "0" + ready[name][1:] + "x"
    with pytest.raises(ProtocolViolation):
        introduction.check(ready, sent_ns, time.time_ns())


@pytest.mark.parametrize(
    "change", [{"proof": "é"}, {"proof": "\ud800"}, {"boot_id": "\ud800"}, {"wall_clock_ns": 10**5000}]
)
def test_an_answer_that_is_no_text_is_not_believed(change: dict[str, Any]) -> None:
    """Half a surrogate pair is JSON; what it does to a comparison is nothing that a supervisor would survive."""
    introduction, sent_ns = Introduction("guest"), time.time_ns()
    with pytest.raises(ProtocolViolation):
        introduction.check(shake(introduction) | change, sent_ns, time.time_ns())


def test_an_answer_to_another_clone_is_not_believed() -> None:
    one, other, sent_ns = Introduction("guest"), Introduction("guest"), time.time_ns()
    with pytest.raises(ProtocolViolation):
        other.check(shake(one), sent_ns, time.time_ns())


def test_a_stale_clock_is_not_believed() -> None:
    introduction = Introduction("guest")
    ready = shake(introduction)
    with pytest.raises(ProtocolViolation, match="clock"):
        introduction.check(ready, time.time_ns() + 10_000_000_000, time.time_ns() + 10_000_000_000)


def test_a_second_one_on_a_reopened_stream_keeps_the_identity() -> None:
    machine = Noted()
    shaken = Handshake(machine, "0")  # type: ignore[arg-type]
    first = shaken.apply(parse(Introduction("guest").hello()))
    again = shaken.apply(parse(replace(Introduction("guest"), fresh=False).hello()))
    assert again["boot_id"] == first["boot_id"]
    assert [act for act in machine.acts if act.startswith("identity")] == ["identity guest"]


def test_a_copy_keeps_the_hosts_its_user_has_named() -> None:
    fresh = hosts("first")
    assert fresh == b"127.0.0.1 localhost\n::1 localhost\n127.0.1.1 first\n"
    copied = hosts("second", fresh + b"10.0.0.1 database \xff", "first")
    assert copied == b"127.0.0.1 localhost\n::1 localhost\n10.0.0.1 database \xff\n127.0.1.1 second\n"
    assert hosts("third", copied, "second").count(b"127.0.1.1") == 1
    assert hosts("third", copied, "\udcff").count(b"127.0.1.1") == 2  # as the kernel has a name that is no text


@pytest.mark.parametrize(
    "change",
    [
        {"generation": 2},
        {"entropy": "AAAA"},
        {"entropy": "not base64!"},
        {"entropy": None},
        {"wall_clock_ns": "now"},
        {"wall_clock_ns": True},
        {"hostname": "a\0b"},
        {"nonce": 7},
        {"env": {"A=B": "c"}},
        {"env": ["A"]},
        {"user": 7},
        {"fresh": False, "copy": True},
    ],
)
def test_a_hello_nobody_sends_is_refused(change: dict[str, Any]) -> None:
    with pytest.raises((ProtocolViolation, InvalidSpec)):
        parse(Introduction("guest").hello() | change)


def test_a_copy_is_told_and_says_so() -> None:
    copied, plain = replace(Introduction("guest"), copy=True), Introduction("guest")
    sent_ns = time.time_ns()
    ready = shake(copied)
    copied.check(ready, sent_ns, time.time_ns())
    with pytest.raises(ProtocolViolation, match="copy"):
        copied.check(ready | {"copy": False}, sent_ns, time.time_ns())
    assert parse(plain.hello()).copy is False


def test_a_host_that_knows_no_copies_is_understood() -> None:
    hello = Introduction("guest").hello()
    del hello["copy"]
    assert parse(hello).copy is False
