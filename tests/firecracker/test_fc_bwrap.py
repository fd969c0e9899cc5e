"""The other jail, bubblewrap's, around a real Firecracker: what one has who is not root."""

from __future__ import annotations

import os
import stat
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.firecracker.jails import LIMITS, Jailed, Jails, open_jails

from casemate.host import Bind, Jail
from casemate.host.jailer import FILTER
from casemate.vmm.firecracker.builds import Build

GROUP = f"casemate-test-bwrap-{os.getpid()}"
ANOTHER = ("unshare", "--user", "--map-user=1000", "--map-group=1000")  # root's files are its own, and it is not root
BINARY = "/usr/bin/firecracker"


@pytest.fixture(params=[(), ANOTHER], ids=["root", "another"])
def jails(request: pytest.FixtureRequest, firecracker: Build, no_trace: None, tmp_path: Path) -> Iterator[Jails]:
    before: tuple[str, ...] = request.param
    if os.geteuid() == 0 and before and subprocess.run([*before, "true"], check=False).returncode != 0:
        pytest.skip("no user namespace can be made here")
    how = before if os.geteuid() == 0 else ()
    with open_jails(firecracker, tmp_path, GROUP, how, strict=False) as found:
        yield found


@pytest.fixture
def machine(jails: Jails, guests: Path) -> Jailed:
    files = {"/exchange": jails.make_exchange("one"), BINARY: jails.binaries.firecracker, "/kernel": guests / "counter"}
    binds = tuple(Bind(number, place, place == "/exchange") for number, place in enumerate(files, 3))
    jail = Jail(binds, "one", LIMITS, FILTER, devices=("/dev/kvm",), output=True)
    found = jails.ask_for("one", jail.to_json(), [BINARY, "--api-sock", "/exchange/api.sock"], files.values())
    found.told = jails.hear()
    assert "pid" in found.told, found.words()
    found.api().boot(Path("/kernel"))
    return found


def test_it_runs_a_guest_and_its_output_is_heard(machine: Jailed) -> None:
    assert machine.api().memory().runs()
    assert "counting\n" in machine.words_until("counting\n")


def test_it_has_the_device_and_no_other(machine: Jailed) -> None:
    root = machine.process / "root"
    assert [path.name for path in (root / "dev").iterdir()] == ["kvm"]
    found = (root / "dev/kvm").stat()
    assert stat.S_ISCHR(found.st_mode)
    assert found.st_rdev == os.stat("/dev/kvm").st_rdev
    if machine.told["uid"] is not None:
        assert (found.st_uid, stat.S_IMODE(found.st_mode)) == (machine.told["uid"], 0o600)


def test_it_is_jailed_as_any_other(machine: Jailed) -> None:
    status = machine.status
    assert {status[f"Cap{kind}"] for kind in ("Inh", "Prm", "Eff", "Bnd", "Amb")} == {"0" * 16}
    assert (status["NoNewPrivs"], status["Seccomp"]) == ("1", "2")
    for kind in ("cgroup", "ipc", "mnt", "net", "pid", "user", "uts"):
        assert os.readlink(machine.process / "ns" / kind) != os.readlink(f"/proc/self/ns/{kind}"), kind
    assert machine.process.name == str(machine.told["pid"])
    assert status["NSpid"].split()[-1] == "1", "here it is the first of its namespace itself"
