"""``casemate serve``: the daemon in the foreground."""

from __future__ import annotations

import os
import sys
from typing import Annotated

import typer


def serve(
    no_overcommit: Annotated[
        bool, typer.Option("--no-overcommit", help="Reserve all of each guest's memory and disk (commit_ratio 1).")
    ] = False,
) -> None:
    """Run the daemon in the foreground.

    Until Ctrl-C. Without it, one is started when it is needed.

    Example:
      CASEMATE_HOME=/srv/casemate casemate serve
    """
    if no_overcommit:
        os.environ["CASEMATE_COMMIT_RATIO"] = "1.0"
    sys.stdout.flush()
    os.execv(sys.executable, [sys.executable, "-m", "casemate.daemon"])  # its signals are the daemon's, not ours
