"""One machine: the contract every driver keeps. The drivers themselves are named by the daemon only."""

from casemate.vmm.contract import (
    Accelerator,
    Drive,
    Driver,
    Isolation,
    Kernel,
    Machine,
    MachineSpec,
    Platform,
    SnapshotFiles,
    VmmExit,
)
from casemate.vmm.difference import Difference

__all__ = [
    "Accelerator",
    "Difference",
    "Drive",
    "Driver",
    "Isolation",
    "Kernel",
    "Machine",
    "MachineSpec",
    "Platform",
    "SnapshotFiles",
    "VmmExit",
]
