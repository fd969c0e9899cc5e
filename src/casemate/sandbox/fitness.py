"""Whether a stored machine can run here: the only check there is, for a VMM loads a wrong one in silence. Pure.

Image snapshots and suspended sandboxes are judged alike; they differ in what to do about a misfit, and in that a
suspended sandbox may be restored by a VMM build that was kept for it.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Self

from casemate.errors import Unfit
from casemate.sandbox.seal import Kind
from casemate.vmm import Platform
from casemate.wire import GENERATION

SPOKEN = frozenset({GENERATION, GENERATION - 1} - {0})  # the agents' generations that the host speaks
CLOCK_TOLERANCE_PPM = 250  # between two measurements of one clock; KVM's tsc_tolerance_ppm is the same
OTHERWISE: Mapping[Kind, str] = {
    "image-snapshot": "it is built again by itself",
    "session-snapshot": "or take it again, of a sandbox that runs here",
    "suspended-sandbox": "or start it from its disk, without its memory: casemate resume --cold",
}
NAMED_FEATURES = 8


@dataclass(frozen=True, slots=True)
class Made:
    """What a stored machine was made with."""

    platform: Platform
    kernel_release: str
    generation: int  # of its agent
    root: Path  # the shared read-only disks its guest has mounted; a disk's name is its digest
    agent: Path

    def to_json(self) -> dict[str, Any]:
        """These keys stand among others in a manifest."""
        return asdict(self) | {"root": str(self.root), "agent": str(self.agent)}

    @classmethod
    def from_json(cls, body: Mapping[str, Any]) -> Self:
        """Raises KeyError, TypeError, ValueError for what is not whole."""
        return cls(
            platform=Platform(**body["platform"]),
            kernel_release=str(body["kernel_release"]),
            generation=int(body["generation"]),
            root=Path(body["root"]),
            agent=Path(body["agent"]),
        )


@dataclass(frozen=True, slots=True)
class Here:
    """What it would run on. *disks*: those it may stand on; *kept_vmms*: digests of builds that could restore it."""

    platform: Platform
    disks: Collection[Path]
    kept_vmms: Collection[str] = ()
    kernel_release: str | None = None  # None: whatever kernel it has in its memory


@dataclass(frozen=True, slots=True)
class Misfit:
    """*what*: vmm, machine, cpu, clock, kernel, agent or disk."""

    what: str
    sentence: str
    remedy: str


def unfit(made: Made, here: Here, kind: Kind) -> list[Misfit]:
    """Why *made* cannot be restored; nothing when it can."""
    then, now, found = made.platform, here.platform, list[Misfit]()

    def add(what: str, sentence: str, remedy: str = "") -> None:
        ways = (OTHERWISE[kind],) if kind == "image-snapshot" else (remedy, OTHERWISE[kind])
        found.append(Misfit(what, sentence, ", ".join(filter(None, ways)).removeprefix("or ")))

    own_build = (then.vmm, then.vmm_sha256) == (now.vmm, now.vmm_sha256)
    if then.vmm != now.vmm:
        add(
            "vmm",
            f"it was made by {then.version}, machines run under {now.version} here",
            "casemate doctor says why not under that",
        )
    elif not own_build and then.vmm_sha256 not in here.kept_vmms:
        add(
            "vmm",
            f"it was made by {then.version} (build {then.vmm_sha256[:12]}), "
            f"installed is {now.version} (build {now.vmm_sha256[:12]})",
            "install that build again",
        )
    if then.accelerator != now.accelerator:
        add("machine", f"it was made under {then.accelerator}, machines run under {now.accelerator} here")
    if then.machine != now.machine:
        add("machine", f"its machine has another configuration: {_difference(then.machine, now.machine)}")
    if then.cpu != now.cpu:
        add("cpu", f"it was made with the CPU {then.cpu}, here is {now.cpu}", "move it back to that processor")
    # A kept build brings its own emulated CPU; under KVM the features are the processor's
    elif then.cpu_features != now.cpu_features and (own_build or now.accelerator == "kvm"):
        add("cpu", f"its CPU has other features: {_features(then.cpu_features, now.cpu_features)}")
    if not _same_rate(then.tsc_khz, now.tsc_khz):
        add("clock", f"its clock runs at {then.tsc_khz} kHz, this host's at {now.tsc_khz} kHz")
    if here.kernel_release not in (None, made.kernel_release):
        add("kernel", f"its guest runs Linux {made.kernel_release}, the image has {here.kernel_release} now")
    if made.generation not in SPOKEN:
        add(
            "agent",
            f"its agent speaks generation {made.generation}, this Casemate {_either(SPOKEN)}",
            "use the version of Casemate that made it",
        )
    for name, disk in (("root disk", made.root), ("agent disk", made.agent)):
        if disk not in here.disks:
            add("disk", f"the {name} it has mounted is not the one here: {disk.name[:12]}", "put that file back")
    return found


def check_fit(made: Made, here: Here, kind: Kind, what: str) -> None:
    """Raises Unfit, about *what*, with every reason."""
    if misfits := unfit(made, here, kind):
        raise Unfit(
            f"{what} cannot be restored here: {sentences(misfits)}",
            hint="; ".join(dict.fromkeys(misfit.remedy for misfit in misfits)),
            evidence={"misfits": [asdict(misfit) for misfit in misfits]},
        )


def sentences(misfits: Sequence[Misfit]) -> str:
    return "; ".join(misfit.sentence for misfit in misfits)


def _same_rate(then_khz: int, now_khz: int) -> bool:
    return abs(then_khz - now_khz) * 1_000_000 <= max(then_khz, now_khz) * CLOCK_TOLERANCE_PPM


def _difference(then: str, now: str) -> str:
    """The words that only one of them has."""
    before, after = then.split(), now.split()
    gone = [word for word in before if word not in after]
    new = [word for word in after if word not in before]
    return f"{' '.join(gone) or '(nothing)'} is now {' '.join(new) or '(nothing)'}" if gone or new else "another order"


def _features(then: str, now: str) -> str:
    before, after = set(then.split()), set(now.split())
    parts = (("lacking here", sorted(before - after)), ("new here", sorted(after - before)))
    return ", ".join(
        f"{word}: {' '.join(names[:NAMED_FEATURES])}{' …' * (len(names) > NAMED_FEATURES)}"
        for word, names in parts
        if names
    )


def _either(numbers: Collection[int]) -> str:
    return " or ".join(map(str, sorted(numbers)))
