"""What is written and synced all the time is in memory."""

from tests.memory import tmp_path

__all__ = ["tmp_path"]
