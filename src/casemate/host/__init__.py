"""What the kernel lends us: processes, folders, jails, privilege. Lazy, because the launcher must stay small."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from casemate.host.account import Account, GroupLimits
    from casemate.host.approval import approve
    from casemate.host.cgroup import Limits
    from casemate.host.durable import sync_file, sync_folder
    from casemate.host.jail import Bind, Jail
    from casemate.host.jailer import Jailer
    from casemate.host.launching import Launcher, Spawned, open_launcher, start_launcher
    from casemate.host.load import is_crowded
    from casemate.host.mapping import ProcessMemory
    from casemate.host.memory import available_mib, private_mib
    from casemate.host.orphans import Swept, sweep_kernel
    from casemate.host.ownership import own, own_folder, remove_folder
    from casemate.host.privilege import drop_privilege, enter_view, give_home

_HOMES = {
    "Account": "account",
    "approve": "approval",
    "Bind": "jail",
    "GroupLimits": "account",
    "Jail": "jail",
    "Jailer": "jailer",
    "Launcher": "launching",
    "Limits": "cgroup",
    "ProcessMemory": "mapping",
    "Spawned": "launching",
    "Swept": "orphans",
    "available_mib": "memory",
    "drop_privilege": "privilege",
    "enter_view": "privilege",
    "give_home": "privilege",
    "is_crowded": "load",
    "open_launcher": "launching",
    "own": "ownership",
    "own_folder": "ownership",
    "private_mib": "memory",
    "remove_folder": "ownership",
    "start_launcher": "launching",
    "sweep_kernel": "orphans",
    "sync_file": "durable",
    "sync_folder": "durable",
}
__all__ = [
    "sync_file",
    "sync_folder",
    "Account",
    "Bind",
    "GroupLimits",
    "Jail",
    "Jailer",
    "Launcher",
    "Limits",
    "ProcessMemory",
    "Spawned",
    "Swept",
    "approve",
    "available_mib",
    "drop_privilege",
    "enter_view",
    "give_home",
    "is_crowded",
    "open_launcher",
    "own",
    "own_folder",
    "private_mib",
    "remove_folder",
    "start_launcher",
    "sweep_kernel",
]


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(importlib.import_module(f"casemate.host.{_HOMES[name]}"), name)
    raise AttributeError(f"module 'casemate.host' has no attribute {name!r}")
