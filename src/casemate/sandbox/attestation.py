"""What a sandbox really runs in: the kernel's account of its VMM, held against what was asked for.

A sandbox whose VMM is not the right binary, has not mapped the right memory or lacks a part of its jail does not start.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from casemate.errors import NotAttested
from casemate.host import Account, GroupLimits
from casemate.sandbox.snapshot import Snapshot
from casemate.vmm import Accelerator, Driver, Isolation, Machine

SECCOMP_FILTERS = 2  # the mode's number. Source: linux/seccomp.h


@dataclass(frozen=True, slots=True)
class VmmFacts:
    name: str
    version: str
    sha256: str  # of /proc/PID/exe


@dataclass(frozen=True, slots=True)
class SeccompFacts:
    """*filters* as the kernel counts them, of the thread that has the fewest; *names* of those we know of."""

    filters: int
    names: Sequence[str]


@dataclass(frozen=True, slots=True)
class JailFacts:
    """*caps*: none, so always empty. *cgroup*: its path in each tree. *limits*: what the kernel enforces."""

    uid: int
    caps: Sequence[str]
    seccomp: SeccompFacts
    no_new_privs: bool
    namespaces: Mapping[str, str]
    cgroup: str | None
    limits: GroupLimits | Literal["rlimit-only"]
    rlimits: Mapping[str, int]
    oom_score_adj: int


@dataclass(frozen=True, slots=True)
class ImageFacts:
    reference: str
    snapshot: str
    memory_sha256: str


@dataclass(frozen=True, slots=True)
class PolicyFacts:
    """*digest* is the sha256 of the policy's canonical JSON."""

    network: str
    digest: str


@dataclass(frozen=True, slots=True)
class Attestation:
    """One sandbox, at its start."""

    isolation: Isolation
    accelerator: Accelerator
    vmm: VmmFacts
    jail: JailFacts
    kernel: str
    image: ImageFacts
    policy: PolicyFacts

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


async def attest(
    driver: Driver,
    machine: Machine,
    snapshot: Snapshot,
    sandbox_id: str,
    network: str,
    *,
    memory: Path | None = None,
    booted: bool = False,
) -> Attestation:
    """*memory*: the file its memory stands on, if not the snapshot's; *booted*: the machine writes that file.

    Raises NotAttested when the kernel's account is not that of such a sandbox; VmmExited, HostError.
    """
    account = await machine.account(memory or snapshot.files.memory)
    if wrong := list(_deviations(account, snapshot, sandbox_id, driver, booted)):
        raise NotAttested(
            f"sandbox {sandbox_id}: process {account.pid} is not its jailed VMM: {'; '.join(wrong)}",
            hint="nothing was run in it; look at that process and at what the account says",
            evidence=account.to_json(),
        )
    platform = snapshot.platform
    return Attestation(
        isolation=driver.isolation,
        accelerator=driver.accelerator,
        vmm=VmmFacts(platform.vmm, platform.version, account.executable_sha256),
        jail=JailFacts(
            uid=account.uid,
            caps=(),
            seccomp=SeccompFacts(account.seccomp_filters, driver.filters),
            no_new_privs=account.no_new_privs,
            namespaces=account.namespaces,
            cgroup=account.cgroup,
            limits=account.limits or "rlimit-only",
            rlimits=account.rlimits,
            oom_score_adj=account.oom_score_adj,
        ),
        kernel=snapshot.kernel_release,
        image=ImageFacts(snapshot.image, snapshot.id, snapshot.digests.get("memory", "")),
        policy=policy(network),
    )


def policy(network: str) -> PolicyFacts:
    """Until there is a broker the policy is one word."""
    canonical = json.dumps({"network": network}, sort_keys=True, separators=(",", ":"))
    return PolicyFacts(network, hashlib.sha256(canonical.encode()).hexdigest())


def _deviations(account: Account, snapshot: Snapshot, sandbox_id: str, driver: Driver, booted: bool) -> list[str]:
    """What is wrong with it, in words. A control group may be missing, where the host's owner allowed that."""
    memory_bytes, filters = snapshot.shape.memory_mib << 20, len(driver.filters)
    checks = {
        "its executable is another": account.executable_sha256 == snapshot.platform.vmm_sha256,
        "this sandbox's memory is not mapped once, copy-on-write": booted
        or (account.private_bytes, account.shared_bytes) == (memory_bytes, 0),
        "its own memory is not mapped once": not (booted and driver.memory_is_file)
        or (account.private_bytes, account.shared_bytes) == (0, memory_bytes),
        "it has capabilities": account.capabilities == 0,
        "it may gain privileges": account.no_new_privs,
        f"it has fewer than {filters} filters of system calls": (
            account.seccomp_mode == SECCOMP_FILTERS and account.seccomp_filters >= filters
        ),
        "it shares namespaces with us": account.namespaces.keys() >= driver.namespaces,
        "its control group is another's": (account.cgroup is None or account.cgroup.rpartition("/")[2] == sandbox_id),
        "its control group does not limit it": account.limits is None
        or all((account.limits.memory_bytes, account.limits.cpu_percent, account.limits.pids)),
    }
    return [words for words, holds in checks.items() if not holds]
