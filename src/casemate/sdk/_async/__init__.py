"""The SDK as it is written. ``_sync`` is generated from this folder by ``tools/generate_sync.py``."""
