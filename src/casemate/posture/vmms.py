"""Firecracker, and which of the two VMMs machines run under."""

from __future__ import annotations

from dataclasses import replace

from casemate.posture.check import Check, Status, passed, skipped, warned
from casemate.vmm.choice import Choice

INSTALL = "casemate vmm install firecracker"


def check_firecracker(choice: Choice) -> Check:
    """Whether it is installed, and good. Only where KVM is usable does that matter."""
    name, build, refusal = "firecracker", choice.firecracker, choice.refusal
    found = f"{build.version} (build {build.sha256[:12]})" if build else "not installed"
    if choice.accelerator != "kvm":
        return skipped(name, f"{found}; it needs KVM")
    if refusal is not None:
        why = refusal.message if build else "the smaller VMM, and the faster one; QEMU is used instead"
        return warned(name, found, why, INSTALL)
    if choice.known_bad:
        return warned(name, found, f"known to be bad: {choice.known_bad}; allow_known_bad_vmm is set", INSTALL)
    return passed(name, found)


def check_vmm(choice: Choice, qemu: str | None) -> Check:
    """What machines run under. *qemu* is its version."""
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
