"""``casemate serve``: the daemon in the foreground."""

from __future__ import annotations

import os
import sys


def serve() -> None:
    """Run the daemon in the foreground.

    Until Ctrl-C. Without it, one is started when it is needed.

    Example:
      CASEMATE_HOME=/srv/casemate casemate serve
    """
    sys.stdout.flush()
    os.execv(sys.executable, [sys.executable, "-m", "casemate.daemon"])  # its signals are the daemon's, not ours
