"""Which VMM machines run under, by what is installed and what KVM can do."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.unit.vmm.installed import put_build

from casemate import errors
from casemate.vmm.choice import choose

GOOD, BAD = "1.15.1", "1.12.1"


@pytest.mark.parametrize(
    ("installed", "kvm", "allowed", "vmm", "accelerator", "why"),
    [
        (GOOD, True, False, "firecracker", "kvm", "it is installed, of a good version, and KVM is usable"),
        (GOOD, False, False, "qemu", "tcg", "without KVM"),
        (None, True, False, "qemu", "kvm", "KVM is usable, but Firecracker is not installed"),
        (None, False, False, "qemu", "tcg", "without KVM"),
        (BAD, True, False, "qemu", "kvm", "KVM is usable, but Firecracker 1.12.1 is not used: its jailer"),
        (BAD, True, True, "firecracker", "kvm", "it is installed, though known to be bad (CVE-2026-1386), and"),
        (BAD, False, True, "qemu", "tcg", "without KVM"),
        ("1.17.0", True, False, "qemu", "kvm", "never tried"),
    ],
)
def test_the_choice(
    tmp_path: Path, installed: str | None, kvm: bool, allowed: bool, vmm: str, accelerator: str, why: str
) -> None:
    digest = put_build(tmp_path, installed) if installed else None
    choice = choose(tmp_path, kvm, known_bad_allowed=allowed)
    assert (choice.vmm, choice.accelerator) == (vmm, accelerator)
    assert why in choice.why
    assert (choice.firecracker.sha256 if choice.firecracker else None) == digest
    assert (choice.refusal is None) == (installed == GOOD or (allowed and installed is not None))
    assert choice.known_bad == ("CVE-2026-1386" if vmm == "firecracker" and installed == BAD else "")


def test_one_that_was_changed_is_none(tmp_path: Path) -> None:
    (tmp_path / put_build(tmp_path, GOOD) / "jailer").write_bytes(b"changed")
    choice = choose(tmp_path, True)
    assert (choice.vmm, choice.firecracker) == ("qemu", None)
    assert "is not what was installed" in choice.why


def test_no_home_yet(tmp_path: Path) -> None:
    assert choose(tmp_path / "none", True).vmm == "qemu"


@pytest.mark.parametrize("kvm", [True, False])
def test_what_was_asked_for(tmp_path: Path, kvm: bool) -> None:
    put_build(tmp_path, GOOD)
    qemu, emulated = (choose(tmp_path, kvm, wish=wish) for wish in ("qemu", "qemu-tcg"))
    assert (qemu.vmm, qemu.accelerator) == ("qemu", "kvm" if kvm else "tcg")
    assert (emulated.vmm, emulated.accelerator) == ("qemu", "tcg")
    assert "asked for" in qemu.why


def test_what_cannot_be_had_is_refused_and_not_replaced(tmp_path: Path) -> None:
    with pytest.raises(errors.ToolMissing, match="not installed"):
        choose(tmp_path, True, wish="firecracker")
    put_build(tmp_path, GOOD)
    with pytest.raises(errors.HostError, match="needs KVM"):
        choose(tmp_path, False, wish="firecracker")
    assert choose(tmp_path, True, wish="firecracker").vmm == "firecracker"
    with pytest.raises(errors.InvalidSpec, match="bochs"):
        choose(tmp_path, True, wish="bochs")
