"""An account that is not of such a sandbox keeps it from starting, whatever part of it is wrong."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import anyio
import pytest
from tests.fakes.fake_vmm import ACCOUNT, PLATFORM, FakeDriver

from casemate.errors import NotAttested
from casemate.host import Account, GroupLimits
from casemate.sandbox import Shape, Snapshot
from casemate.sandbox.attestation import attest, policy

ID = "2fqx1a788b6m13xkprnwhf7wvp"
SNAPSHOT = Snapshot("s", "python@1", Shape(1, 128, 64), PLATFORM, "6.12", Path("/s"), Path("/r"), Path("/a"), {})
LIMITS = GroupLimits("v1", 256 << 20, 150, 97)
GOOD = replace(ACCOUNT, private_bytes=128 << 20, cgroup=f"/casemate-x/{ID}", limits=LIMITS)


class Telling:
    """A machine of which the kernel says just this."""

    def __init__(self, account: Account) -> None:
        self._account = account

    async def account(self, memory: Path) -> Account:
        assert memory == SNAPSHOT.files.memory
        return self._account


def attested(account: Account) -> dict[str, Any]:
    return anyio.run(attest, FakeDriver(), Telling(account), SNAPSHOT, ID, "none").to_json()


def test_what_the_kernel_says_is_what_is_told() -> None:
    found = attested(GOOD)
    assert found["vmm"] == {"name": "fake", "version": "1", "sha256": PLATFORM.vmm_sha256}
    assert found["jail"]["limits"] == {"version": "v1", "memory_bytes": 256 << 20, "cpu_percent": 150, "pids": 97}
    assert found["jail"]["cgroup"] == f"/casemate-x/{ID}"
    assert found["kernel"] == "6.12"
    assert found["image"]["reference"] == "python@1"


def test_a_weak_jail_says_so() -> None:
    assert attested(replace(GOOD, cgroup=None, limits=None))["jail"]["limits"] == "rlimit-only"


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"executable_sha256": "1" * 64}, "executable"),
        ({"private_bytes": 0}, "memory"),
        ({"private_bytes": 256 << 20}, "memory"),
        ({"shared_bytes": 4096}, "memory"),
        ({"capabilities": 1 << 21}, "capabilities"),
        ({"no_new_privs": False}, "privileges"),
        ({"seccomp_mode": 0}, "filters"),
        ({"seccomp_filters": 0}, "filters"),
        ({"namespaces": {"pid": "pid:[1]"}}, "namespaces"),
        ({"cgroup": "/casemate-x/other"}, "control group"),
        ({"limits": replace(LIMITS, memory_bytes=None)}, "does not limit"),
    ],
)
def test_a_part_that_is_missing_keeps_it_from_starting(changed: dict[str, Any], words: str) -> None:
    with pytest.raises(NotAttested, match=words) as caught:
        attested(replace(GOOD, **changed))
    assert caught.value.evidence["pid"] == GOOD.pid


def test_the_policys_digest_is_of_its_canonical_json() -> None:
    assert policy("none").digest == "2d95e2b4a84d388b80886565e1890bb3ef29e5296dbbed2a750da5fa321b1567"
