"""Which VMM this host's machines run under, and why: the composition root asks, and so does the doctor."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from casemate.errors import HostError, InvalidSpec, ToolMissing
from casemate.vmm.contract import Accelerator
from casemate.vmm.firecracker.builds import Build, find_build
from casemate.vmm.firecracker.versions import check_version, find_defects, find_flaws

VmmName = Literal["firecracker", "qemu"]
WISHES = ("auto", "firecracker", "qemu", "qemu-tcg")


@dataclass(frozen=True, slots=True)
class Choice:
    """*why* is a sentence without its end."""

    vmm: VmmName
    accelerator: Accelerator
    why: str
    firecracker: Build | None  # the installed one, also where it is not chosen
    refusal: ToolMissing | None  # why it would not be, whatever KVM can do
    known_bad: str = ""  # the names of its defects, where it is run all the same
    flaws: str = ""  # of the installed one, which it is used with


def choose(vmm: Path, kvm_usable: bool, *, wish: str = "auto", known_bad_allowed: bool = False) -> Choice:
    """Firecracker where a good one is installed below *vmm* and KVM is usable; else QEMU, with KVM or emulated.

    *wish*: ``auto`` for that; ``firecracker`` for that or nothing, ``qemu``, or ``qemu-tcg`` for emulation whatever KVM
    can do. Blocks some milliseconds. Raises InvalidSpec for another word; HostError, ToolMissing for a wish that this
    host cannot fulfil.
    """
    if wish not in WISHES:
        raise InvalidSpec(f"setting vmm: {wish!r} is none of {', '.join(WISHES)}")
    found = _found(vmm, kvm_usable, known_bad_allowed)
    match wish:
        case "firecracker" if found.refusal is not None:
            raise found.refusal
        case "firecracker" if not kvm_usable:
            raise HostError(
                "Firecracker was asked for, and it needs KVM, which cannot be used here",
                hint="casemate doctor says why; vmm = 'auto' takes what there is",
            )
        case "qemu" | "qemu-tcg":
            accelerator: Accelerator = "kvm" if kvm_usable and wish == "qemu" else "tcg"
            return replace(found, vmm="qemu", accelerator=accelerator, why="it was asked for", known_bad="")
    return found


def _found(vmm: Path, kvm_usable: bool, known_bad_allowed: bool) -> Choice:
    build, refusal, flaws = None, None, ""
    try:
        build = find_build(vmm)
        check_version(build.version, known_bad_allowed=known_bad_allowed)
        flaws = "; ".join(f"{flaw.what} ({flaw.name})" for flaw in find_flaws(build.version))
    except ToolMissing as error:
        refusal = error
    if not kvm_usable:
        return Choice("qemu", "tcg", "without KVM machines are emulated, which QEMU alone can", build, refusal)
    if build is None or refusal is not None:
        return Choice("qemu", "kvm", f"KVM is usable, but {refusal and refusal.message}", build, refusal)
    defects = ", ".join(defect.name for defect in find_defects(build.version))
    known = f"though known to be bad ({defects})" if defects else "of a good version"
    return Choice("firecracker", "kvm", f"it is installed, {known}, and KVM is usable", build, None, defects, flaws)
