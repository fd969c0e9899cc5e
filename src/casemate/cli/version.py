"""``casemate version``."""

from __future__ import annotations

import json
import platform
from typing import Annotated

import typer

from casemate import __version__


def version(as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False) -> None:
    """Print the version.

    Example:
      casemate version --json
    """
    if as_json:
        print(json.dumps({"version": __version__, "python": platform.python_version()}))
    else:
        print(f"casemate {__version__}")
