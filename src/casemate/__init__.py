"""Casemate: microVMs on your own machine for code nobody has reviewed.

Standard library only, and lazy: the agent inside the guest imports this package too.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from casemate.sdk import AsyncSandbox, ExecResult, Execution, Sandbox

__version__ = "0.1.0"
__all__ = ["AsyncSandbox", "ExecResult", "Execution", "Sandbox", "__version__"]


def __getattr__(name: str) -> Any:
    if name in __all__:
        import importlib

        return getattr(importlib.import_module("casemate.sdk"), name)
    raise AttributeError(f"module 'casemate' has no attribute {name!r}")
