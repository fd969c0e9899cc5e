"""Which VMM this host's machines run under, and why: the composition root asks, and so does the doctor."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from casemate.errors import ToolMissing
from casemate.vmm.contract import Accelerator
from casemate.vmm.firecracker.builds import Build, find_build
from casemate.vmm.firecracker.versions import check_version, find_defects

VmmName = Literal["firecracker", "qemu"]


@dataclass(frozen=True, slots=True)
class Choice:
    """*why* is a sentence without its end."""

    vmm: VmmName
    accelerator: Accelerator
    why: str
    firecracker: Build | None  # the installed one, also where it is not chosen
    refusal: ToolMissing | None  # why it would not be, whatever KVM can do
    known_bad: str = ""  # the names of its defects, where it is run all the same


def choose(vmm: Path, kvm_usable: bool, *, known_bad_allowed: bool = False) -> Choice:
    """Firecracker where a good one is installed below *vmm* and KVM is usable; else QEMU, with KVM or emulated.

    Blocks some milliseconds.
    """
    build, refusal = None, None
    try:
        build = find_build(vmm)
        check_version(build.version, known_bad_allowed=known_bad_allowed)
    except ToolMissing as error:
        refusal = error
    if not kvm_usable:
        return Choice("qemu", "tcg", "without KVM machines are emulated, which QEMU alone can", build, refusal)
    if build is None or refusal is not None:
        return Choice("qemu", "kvm", f"KVM is usable, but {refusal and refusal.message}", build, refusal)
    defects = ", ".join(defect.name for defect in find_defects(build.version))
    known = f"though known to be bad ({defects})" if defects else "of a good version"
    return Choice("firecracker", "kvm", f"it is installed, {known}, and KVM is usable", build, None, defects)
