"""Firecracker, and which of the two VMMs machines run under."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

from casemate.config import Settings
from casemate.errors import HostError
from casemate.posture.check import Check, Status, failed, passed, skipped, warned
from casemate.vmm.choice import Choice, choose

INSTALL = "casemate vmm install firecracker"


def find_choice(settings: Settings, kvm_usable: bool) -> tuple[Choice, HostError | None]:
    """What machines run under; where what was asked for cannot be, what would be, and why not. Raises InvalidSpec."""
    look = partial(choose, settings.home / "vmm", kvm_usable, known_bad_allowed=settings.allow_known_bad_vmm)
    try:
        return look(wish=settings.vmm), None
    except HostError as error:
        return look(), error


def check_firecracker(choice: Choice, kvm_usable: bool) -> Check:
    """Whether it is installed, and good. Only where KVM is usable does that matter."""
    name, build, refusal = "firecracker", choice.firecracker, choice.refusal
    found = f"{build.version} (build {build.sha256[:12]})" if build else "not installed"
    if not kvm_usable:
        return skipped(name, f"{found}; it needs KVM")
    if refusal is not None:
        why = refusal.message if build else "the smaller VMM, and the faster one; QEMU is used instead"
        return warned(name, found, why, INSTALL)
    if choice.known_bad:
        return warned(name, found, f"known to be bad: {choice.known_bad}; allow_known_bad_vmm is set", INSTALL)
    if choice.flaws:
        return warned(name, found, f"it is used, but a newer one is better: {choice.flaws}", INSTALL)
    return passed(name, found)


def check_vmm(choice: Choice, qemu: str | None, refusal: HostError | None = None) -> Check:
    """What machines run under. *qemu* is its version; *refusal* is of what was asked for."""
    if refusal is not None:
        return failed("vmm", refusal.message, f"the setting vmm asks for it; {refusal.hint}")
    if choice.vmm == "qemu" and qemu is None:  # which is another check's to say
        return skipped("vmm", f"none: {choice.why}")
    return passed("vmm", f"{vmm_said(choice, qemu)}: {choice.why}")


def vmm_said(choice: Choice, qemu: str | None) -> str | None:
    """As ``qemu 10.0.2``; None where there is none."""
    if choice.vmm == "firecracker" and choice.firecracker:
        return f"firecracker {choice.firecracker.version}"
    return f"qemu {qemu}" if qemu else None


def unless_needed(check: Check, choice: Choice) -> Check:
    """A fault of QEMU's is none of this host's where machines run under Firecracker."""
    if choice.vmm == "qemu" or check.status is not Status.FAIL:
        return check
    return replace(check, status=Status.WARN, hint=f"not needed while machines run under Firecracker: {check.hint}")
