"""The fixtures stand in world.py."""

from tests.faults.world import bystander, daemon, guests_home, sandbox

__all__ = ["bystander", "daemon", "guests_home", "sandbox"]
