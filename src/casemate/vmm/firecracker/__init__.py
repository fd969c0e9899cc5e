"""The Firecracker driver. Named by ``vmm.choice`` only."""
