"""The Firecracker driver. Named by the composition root only."""
