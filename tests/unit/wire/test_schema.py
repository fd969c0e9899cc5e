"""Generation 1 is what the golden file says, for ever: agents that speak it live in snapshots."""

from __future__ import annotations

import json
from pathlib import Path

import casemate.wire
from casemate.guest.file_channels import _OPERATIONS
from casemate.guest.server import SERVED
from casemate.sandbox import Introduction
from casemate.sandbox.execs import ExecSpec
from casemate.wire import messages

GOLDEN = Path(casemate.wire.__file__).parent / "schema" / "gen-1.json"


def test_the_code_says_what_the_golden_file_says() -> None:
    assert messages.render() == GOLDEN.read_text()


def test_every_kind_that_is_served_is_in_it() -> None:
    golden = json.loads(GOLDEN.read_text())["channels"]
    assert set(SERVED) <= set(golden)
    assert set(_OPERATIONS) == set(golden["file"])
    assert {"tcp-out", "dns", "log"} == set(golden) - set(SERVED)


def test_what_the_host_sends_is_in_it() -> None:
    golden = json.loads(GOLDEN.read_text())
    assert set(ExecSpec(("true",)).params("id")) == {"op", *golden["channels"]["exec"]["start"]["params"]}
    assert set(Introduction("guest").hello()) == set(golden["connection"]["HELLO"])
