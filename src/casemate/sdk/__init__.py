"""The client: an async SDK and the same without ``async``. Speaks HTTP only, imports nothing of the host side."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from casemate.sdk._async.client import AsyncClient
    from casemate.sdk._async.images import AsyncImages
    from casemate.sdk._async.sandbox import AsyncSandbox
    from casemate.sdk._sync.client import Client
    from casemate.sdk._sync.images import Images
    from casemate.sdk._sync.sandbox import Sandbox
    from casemate.sdk.results import (
        CommandFailed,
        ExecEnd,
        ExecResult,
        Execution,
        ExecutionError,
        Exited,
        FileEntry,
        Logs,
        OutOfMemory,
        Output,
        SandboxInfo,
        Signaled,
        TimedOut,
    )
    from casemate.sdk.stats import SandboxStats

__all__ = [
    "AsyncClient",
    "AsyncImages",
    "AsyncSandbox",
    "Client",
    "CommandFailed",
    "ExecEnd",
    "ExecResult",
    "Execution",
    "ExecutionError",
    "Exited",
    "FileEntry",
    "Images",
    "Logs",
    "OutOfMemory",
    "Output",
    "Sandbox",
    "SandboxInfo",
    "SandboxStats",
    "Signaled",
    "TimedOut",
]

_HOMES = {
    "AsyncClient": "_async.client",
    "AsyncImages": "_async.images",
    "AsyncSandbox": "_async.sandbox",
    "Client": "_sync.client",
    "Images": "_sync.images",
    "Sandbox": "_sync.sandbox",
    "SandboxStats": "stats",
}


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module 'casemate.sdk' has no attribute {name!r}")
    # PEP 562: who uses the sync SDK does not pay for the async one
    return getattr(import_module(f"casemate.sdk.{_HOMES.get(name, 'results')}"), name)
