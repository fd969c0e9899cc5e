"""The fixtures stand in world.py."""

from tests.faults.world import bystander, daemon, home, sandbox

__all__ = ["bystander", "daemon", "home", "sandbox"]
