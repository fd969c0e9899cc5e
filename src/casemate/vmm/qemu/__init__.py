"""The QEMU driver (machine type ``microvm``). Named by the composition root only."""

from casemate.vmm.qemu.driver import QemuDriver

__all__ = ["QemuDriver"]
