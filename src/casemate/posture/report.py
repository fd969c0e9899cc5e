"""All checks of this host, and the verdict they make: as JSON or as text."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from casemate.config import Settings
from casemate.posture import keeping, kernel, kvm, programs, space, stored, vmms
from casemate.posture.check import Check, Status

COLOURS = {Status.PASS: "32", Status.WARN: "33", Status.FAIL: "31;1", Status.SKIP: "2"}


@dataclass(frozen=True, slots=True)
class Report:
    """*vmm* is what a machine would run under, as ``qemu 10.0.2``, or None where there is none."""

    isolation: str
    accelerator: str
    vmm: str | None
    checks: tuple[Check, ...]

    @property
    def usable(self) -> bool:
        return not any(check.status is Status.FAIL for check in self.checks)

    @property
    def packages(self) -> list[str]:
        """Missing packages, by Debian's names."""
        return programs.missing_packages(list(self.checks))

    def to_json(self) -> dict[str, Any]:
        return {
            "isolation": self.isolation,
            "accelerator": self.accelerator,
            "vmm": self.vmm,
            "checks": [check.to_json() for check in self.checks],
            "packages": self.packages,
            "summary": summary(self),
        }


def examine(settings: Settings, *, fresh: bool = False) -> Report:
    """Look at this host; takes some 100 ms, and up to 2 s more where KVM is measured (*fresh*: in any case).

    Forks, so call it from a process with one thread.
    """
    verdict = kvm.find_verdict(settings.run, fresh=fresh)
    version = programs.qemu_version()
    choice, refusal = vmms.find_choice(settings, verdict.usable)
    checks = (
        kernel.check_architecture(),
        kvm.check_kvm(verdict),
        vmms.unless_needed(programs.check_qemu(version), choice),
        vmms.check_firecracker(choice, verdict.usable),
        vmms.check_vmm(choice, version, refusal),
        kernel.check_user_namespaces(),
        kernel.check_jail(),
        *map(programs.check_program, programs.PROGRAMS),
        programs.check_subordinate_ids(),
        kernel.check_cgroups(),
        keeping.check_favordynmods(),
        space.check_disk(settings.home),
        space.check_memory(),
        space.check_reflink(settings.home),
        space.check_swap(),
        kernel.check_ksm(),
        kernel.check_smt(),
        kernel.check_cpu_vulnerabilities(),
        keeping.check_home(settings),
        keeping.check_uid_range(settings),
        keeping.check_time_sync(),
        stored.check_stored(settings),
    )
    return Report(
        isolation="hardware" if choice.accelerator == "kvm" else "emulated",
        accelerator=choice.accelerator,
        vmm=vmms.vmm_said(choice, version),
        checks=checks,
    )


def summary(report: Report) -> str:
    """The verdict in one line."""
    failing = [check.name for check in report.checks if check.status is Status.FAIL]
    if failing:
        return f"No sandbox can run here yet: {', '.join(failing)}."
    warnings = sum(check.status is Status.WARN for check in report.checks)
    remark = f", {warnings} warning{'s' * (warnings > 1)}" if warnings else ""
    return f"Sandboxes can run here: isolation {report.isolation} ({report.vmm}, {report.accelerator}){remark}."


def as_text(report: Report, *, colours: bool) -> str:
    """A line per check, below it what to do about it, and the verdict."""
    width = max(len(check.name) for check in report.checks)
    lines = []
    for check in report.checks:
        word = f"{check.status.value:4}"
        if colours:
            word = f"\x1b[{COLOURS[check.status]}m{word}\x1b[0m"
        lines.append(f"{word}  {check.name:{width}}  {check.found}")
        lines += [f"{'':4}  {'':{width}}  → {part}" for part in (check.hint, check.fix) if part]
    return "\n".join([*lines, "", summary(report)])
