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

__all__ = [
    "Accelerator",
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
