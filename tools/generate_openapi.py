"""Write ``docs/openapi.json`` from the routes and what their handlers declare.

python tools/generate_openapi.py            write it
python tools/generate_openapi.py --check    exit 1 when it is stale
"""

from __future__ import annotations

import sys
from pathlib import Path

from casemate.api.native.app import routes_only
from casemate.api.native.openapi import document, text_of

TARGET = Path(__file__).resolve().parents[1] / "docs/openapi.json"


def main(arguments: list[str]) -> int:
    text = text_of(document(routes_only()))
    if "--check" in arguments:
        if TARGET.exists() and TARGET.read_text() == text:
            return 0
        print("stale: docs/openapi.json; run python tools/generate_openapi.py", file=sys.stderr)
        return 1
    TARGET.write_text(text)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
