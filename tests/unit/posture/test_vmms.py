"""What the doctor says of Firecracker, and of which VMM machines will run under."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.unit.vmm.installed import put_build

from casemate.config import Settings
from casemate.errors import InvalidSpec
from casemate.posture import kvm, programs, report, vmms
from casemate.posture.check import Status
from casemate.vmm.choice import choose

INSTALL = "casemate vmm install firecracker"


@pytest.mark.parametrize(
    ("installed", "usable", "allowed", "status", "found", "hint"),
    [
        ("1.15.1", True, False, Status.PASS, "1.15.1 (build ", ""),
        ("1.15.1", False, False, Status.SKIP, "1.15.1 (build ", ""),
        (None, True, False, Status.WARN, "not installed", "QEMU is used instead"),
        (None, False, False, Status.SKIP, "not installed; it needs KVM", ""),
        ("1.14.4", True, False, Status.WARN, "1.14.4 (build ", "a newer one is better: ports of before"),
        ("1.14.0", True, False, Status.WARN, "1.14.0 (build ", "CVE-2026-1386"),
        ("1.14.0", True, True, Status.WARN, "1.14.0 (build ", "allow_known_bad_vmm"),
    ],
)
def test_firecracker(
    tmp_path: Path, installed: str | None, usable: bool, allowed: bool, status: Status, found: str, hint: str
) -> None:
    if installed:
        put_build(tmp_path, installed)
    check = vmms.check_firecracker(choose(tmp_path, usable, known_bad_allowed=allowed), usable)
    assert (check.name, check.status) == ("firecracker", status)
    assert found in check.found
    assert hint in check.hint
    assert check.fix == (INSTALL if status is Status.WARN else "")


def test_the_vmm(tmp_path: Path) -> None:
    without = choose(tmp_path, False)
    assert vmms.check_vmm(without, "10.0.2").found.startswith("qemu 10.0.2: without KVM")
    assert vmms.check_vmm(without, None).status is Status.SKIP
    assert vmms.vmm_said(without, None) is None
    put_build(tmp_path, "1.15.1")
    good = choose(tmp_path, True)
    check = vmms.check_vmm(good, None)
    assert (check.status, check.found.partition(":")[0]) == (Status.PASS, "firecracker 1.15.1")
    for choice, status in ((good, Status.WARN), (without, Status.FAIL)):
        assert vmms.unless_needed(programs.check_qemu("7.2.0"), choice).status is status
    assert vmms.unless_needed(programs.check_qemu("10.0.2"), good).status is Status.PASS


def test_the_whole_report(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a host whose KVM is usable."""
    monkeypatch.setattr(kvm, "find_verdict", lambda run, fresh: kvm.Verdict(True, "as fast as it should be"))
    monkeypatch.setattr(programs, "qemu_version", lambda: None)
    put_build(tmp_path / "vmm", "1.12.1")
    (tmp_path / "run").mkdir()
    told = report.examine(Settings(home=tmp_path, allow_known_bad_vmm=True))
    assert (told.isolation, told.accelerator, told.vmm) == ("hardware", "kvm", "firecracker 1.12.1")
    told = report.examine(Settings(home=tmp_path))
    assert (told.isolation, told.accelerator, told.vmm) == ("hardware", "kvm", None)
    assert "qemu" in [check.name for check in told.checks if check.status is Status.FAIL]


def test_what_was_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A daemon would not start where it cannot be had."""
    monkeypatch.setattr(kvm, "find_verdict", lambda run, fresh: kvm.Verdict(False, "no /dev/kvm"))
    monkeypatch.setattr(programs, "qemu_version", lambda: "10.0.2")
    put_build(tmp_path / "vmm", "1.15.1")
    (tmp_path / "run").mkdir()
    for wish, status in (("auto", Status.PASS), ("qemu-tcg", Status.PASS), ("firecracker", Status.FAIL)):
        told = report.examine(Settings(home=tmp_path, vmm=wish))
        (check,) = [check for check in told.checks if check.name == "vmm"]
        assert check.status is status
        assert told.vmm == "qemu 10.0.2"
    assert "it needs KVM" in check.found
    assert "setting vmm" in check.hint
    monkeypatch.setattr(kvm, "find_verdict", lambda run, fresh: kvm.Verdict(True, "fast"))
    told = report.examine(Settings(home=tmp_path, vmm="qemu-tcg"))
    assert (told.isolation, told.vmm) == ("emulated", "qemu 10.0.2")
    assert [check.status for check in told.checks if check.name == "firecracker"] == [Status.PASS]
    with pytest.raises(InvalidSpec, match="setting vmm"):
        report.examine(Settings(home=tmp_path, vmm="xen"))
