"""The Model Context Protocol: sandboxes as tools of an agent."""

from __future__ import annotations

from importlib.util import find_spec

from casemate.errors import ToolMissing


def require() -> None:
    """Raises ToolMissing where the extra is not installed."""
    if find_spec("mcp") is None:
        raise ToolMissing("the Python package mcp is not installed", hint="pip install 'casemate[mcp]'")
