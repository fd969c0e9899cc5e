"""``python -m casemate.posture [--json] [--fresh]``: needs no daemon, no image and no root.

Exit status: 0 when sandboxes can run here, 1 when a check failed, 2 for a wrong setting.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys

from casemate import config
from casemate.errors import CasemateError
from casemate.posture import as_text, examine


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m casemate.posture", description="Examine this host.")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--fresh", action="store_true", help="measure KVM again instead of using what is known")
    options = parser.parse_args(arguments)
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # a reader who has seen enough is no error
    try:
        report = examine(config.load(), fresh=options.fresh)
    except CasemateError as error:
        print(json.dumps(error.to_json()) if options.json else f"error: {error}", file=sys.stderr)
        return 2
    if options.json:
        print(json.dumps(report.to_json(), indent=1))
    else:
        colours = sys.stdout.isatty() and "NO_COLOR" not in os.environ
        print(as_text(report, colours=colours))
    return 0 if report.usable else 1


if __name__ == "__main__":
    sys.exit(main())
