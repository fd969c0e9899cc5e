"""The client: an async SDK and the same without ``async``. Speaks HTTP only, imports nothing of the host side."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from casemate.sdk._async.client import AsyncClient
    from casemate.sdk._async.events import AsyncEvents
    from casemate.sdk._async.images import AsyncImages
    from casemate.sdk._async.keys import AsyncKeys
    from casemate.sdk._async.pools import AsyncPools
    from casemate.sdk._async.sandbox import AsyncSandbox
    from casemate.sdk._sync.client import Client
    from casemate.sdk._sync.events import Events
    from casemate.sdk._sync.images import Images
    from casemate.sdk._sync.keys import Keys
    from casemate.sdk._sync.pools import Pools
    from casemate.sdk._sync.sandbox import Sandbox
    from casemate.sdk.results import (
        CommandFailed,
        ExecEnd,
        ExecResult,
        Execution,
        ExecutionError,
        Exited,
        FileEntry,
        Listening,
        Logs,
        OutOfMemory,
        Output,
        SandboxInfo,
        Signaled,
        SuspendedFacts,
        TimedOut,
    )
    from casemate.sdk.stats import SandboxStats

__all__ = [
    "AsyncClient",
    "AsyncEvents",
    "AsyncImages",
    "AsyncKeys",
    "AsyncPools",
    "AsyncSandbox",
    "Client",
    "CommandFailed",
    "Events",
    "ExecEnd",
    "ExecResult",
    "Execution",
    "ExecutionError",
    "Exited",
    "FileEntry",
    "Images",
    "Keys",
    "Listening",
    "Logs",
    "OutOfMemory",
    "Output",
    "Pools",
    "Sandbox",
    "SandboxInfo",
    "SandboxStats",
    "Signaled",
    "SuspendedFacts",
    "TimedOut",
]

_HOMES = {
    "AsyncClient": "_async.client",
    "AsyncEvents": "_async.events",
    "AsyncImages": "_async.images",
    "AsyncKeys": "_async.keys",
    "AsyncPools": "_async.pools",
    "AsyncSandbox": "_async.sandbox",
    "Client": "_sync.client",
    "Events": "_sync.events",
    "Images": "_sync.images",
    "Keys": "_sync.keys",
    "Pools": "_sync.pools",
    "Sandbox": "_sync.sandbox",
    "SandboxStats": "stats",
}


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module 'casemate.sdk' has no attribute {name!r}")
    # PEP 562: who uses the sync SDK does not pay for the async one
    return getattr(import_module(f"casemate.sdk.{_HOMES.get(name, 'results')}"), name)
