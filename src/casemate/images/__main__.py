"""Make the artifacts of an image by hand: ``python -m casemate.images [--agent] [--force] HOME [IMAGE]``."""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path

from casemate.errors import CasemateError
from casemate.images import Workshop


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m casemate.images")
    parser.add_argument("home", type=Path)
    parser.add_argument("image", nargs="?", default="python")
    parser.add_argument("--agent", action="store_true", help="only the agent disk")
    parser.add_argument("--force", action="store_true", help="ask the archives for what is newest")
    arguments = parser.parse_args()
    start = time.monotonic()

    def tell(step: str, message: str, fraction: float | None) -> None:
        share = "" if fraction is None else f" {fraction:4.0%}"
        print(f"{time.monotonic() - start:7.2f} s  {step}{share}  {message}", file=sys.stderr)

    try:
        workshop = Workshop(arguments.home)
        if arguments.agent:
            made = {"agent": str(workshop.agent(tell))}
        else:
            found = workshop.prepare(arguments.image, force=arguments.force, progress=tell)
            made = {part: str(getattr(found, part)) for part in found.digests} | {"release": found.kernel_release}
    except CasemateError as error:
        print(json.dumps(error.to_json(), indent=1), file=sys.stderr)
        return 1
    print(json.dumps(made, indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
