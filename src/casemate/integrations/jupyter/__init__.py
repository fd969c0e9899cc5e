"""Jupyter: notebooks that run in a sandbox, and a kernel whose cells do."""

from __future__ import annotations

from importlib.util import find_spec

from casemate.errors import ToolMissing

PACKAGES = ("nbformat", "jupyter_client", "ipykernel")


def require(*packages: str) -> None:
    """Raises ToolMissing where one of *packages*, of those in the extra, is not installed."""
    for name in packages or PACKAGES:
        if find_spec(name) is None:
            raise ToolMissing(f"the Python package {name} is not installed", hint="pip install 'casemate[jupyter]'")
