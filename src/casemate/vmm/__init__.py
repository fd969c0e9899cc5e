"""One machine: the contract every driver keeps. The drivers themselves are named by the daemon only."""

from casemate.vmm.contract import (
    UNLIMITED,
    Accelerator,
    Drive,
    Driver,
    Isolation,
    Kernel,
    Machine,
    MachineSpec,
    Platform,
    RateLimit,
    SnapshotFiles,
    VmmExit,
)
from casemate.vmm.difference import Difference

__all__ = [
    "UNLIMITED",
    "Accelerator",
    "Difference",
    "Drive",
    "Driver",
    "Isolation",
    "Kernel",
    "Machine",
    "MachineSpec",
    "Platform",
    "RateLimit",
    "SnapshotFiles",
    "VmmExit",
]
