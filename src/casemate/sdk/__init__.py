"""The client: an async SDK and the same without ``async``. Speaks HTTP only, imports nothing of the host side."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from casemate.sdk._async.client import AsyncClient
    from casemate.sdk._async.code import AsyncCodeCell, AsyncContexts
    from casemate.sdk._async.events import AsyncEvents
    from casemate.sdk._async.images import AsyncImages
    from casemate.sdk._async.keys import AsyncKeys
    from casemate.sdk._async.pools import AsyncPools
    from casemate.sdk._async.sandbox import AsyncSandbox
    from casemate.sdk._async.snapshots import AsyncSnapshots
    from casemate.sdk._sync.client import Client
    from casemate.sdk._sync.code import CodeCell, Contexts
    from casemate.sdk._sync.events import Events
    from casemate.sdk._sync.images import Images
    from casemate.sdk._sync.keys import Keys
    from casemate.sdk._sync.pools import Pools
    from casemate.sdk._sync.sandbox import Sandbox
    from casemate.sdk._sync.snapshots import Snapshots
    from casemate.sdk.charts import Axis, Bars, Box, Chart, Points, Slice, Tick
    from casemate.sdk.code import (
        CodeEnd,
        CodeOutOfMemory,
        CodeTimedOut,
        Column,
        Completion,
        Context,
        ContextDied,
        Execution,
        ExecutionError,
        FileChange,
        Inspection,
        Interrupted,
        LeftOut,
        Ok,
        Raised,
        Result,
        SandboxDied,
        Table,
    )
    from casemate.sdk.results import (
        CommandFailed,
        ExecEnd,
        ExecResult,
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
    "AsyncCodeCell",
    "AsyncContexts",
    "AsyncEvents",
    "AsyncImages",
    "AsyncKeys",
    "AsyncPools",
    "AsyncSandbox",
    "AsyncSnapshots",
    "Axis",
    "Bars",
    "Box",
    "Chart",
    "Client",
    "CodeCell",
    "CodeEnd",
    "CodeOutOfMemory",
    "CodeTimedOut",
    "Column",
    "CommandFailed",
    "Completion",
    "Inspection",
    "Context",
    "ContextDied",
    "Contexts",
    "Events",
    "ExecEnd",
    "ExecResult",
    "Execution",
    "ExecutionError",
    "Exited",
    "FileChange",
    "FileEntry",
    "Images",
    "Interrupted",
    "Keys",
    "LeftOut",
    "Listening",
    "Logs",
    "Ok",
    "OutOfMemory",
    "Output",
    "Points",
    "Pools",
    "Raised",
    "Result",
    "Sandbox",
    "SandboxDied",
    "SandboxInfo",
    "SandboxStats",
    "Signaled",
    "Slice",
    "Snapshots",
    "SuspendedFacts",
    "Table",
    "Tick",
    "TimedOut",
]

_HOMES = {
    "AsyncClient": "_async.client",
    "AsyncCodeCell": "_async.code",
    "AsyncContexts": "_async.code",
    "AsyncEvents": "_async.events",
    "AsyncImages": "_async.images",
    "AsyncKeys": "_async.keys",
    "AsyncPools": "_async.pools",
    "AsyncSandbox": "_async.sandbox",
    "AsyncSnapshots": "_async.snapshots",
    "Axis": "charts",
    "Bars": "charts",
    "Box": "charts",
    "Chart": "charts",
    "Client": "_sync.client",
    "CodeCell": "_sync.code",
    "CodeEnd": "code",
    "CodeOutOfMemory": "code",
    "CodeTimedOut": "code",
    "Column": "code",
    "Completion": "code",
    "Inspection": "code",
    "Context": "code",
    "ContextDied": "code",
    "Contexts": "_sync.code",
    "Events": "_sync.events",
    "Execution": "code",
    "ExecutionError": "code",
    "FileChange": "code",
    "Images": "_sync.images",
    "Interrupted": "code",
    "Keys": "_sync.keys",
    "LeftOut": "code",
    "Ok": "code",
    "Points": "charts",
    "Pools": "_sync.pools",
    "Raised": "code",
    "Result": "code",
    "Sandbox": "_sync.sandbox",
    "SandboxDied": "code",
    "SandboxStats": "stats",
    "Slice": "charts",
    "Snapshots": "_sync.snapshots",
    "Table": "code",
    "Tick": "charts",
}


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module 'casemate.sdk' has no attribute {name!r}")
    # PEP 562: who uses the sync SDK does not pay for the async one
    return getattr(import_module(f"casemate.sdk.{_HOMES.get(name, 'results')}"), name)
