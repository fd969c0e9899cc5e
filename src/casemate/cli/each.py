"""One act on each of several sandboxes: goes on past one that refuses, and says so in the end."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from casemate.sdk import Sandbox


def each(refs: Sequence[str], act: Callable[[Sandbox], str], as_json: bool) -> int:
    """*act* changes a sandbox and says a line about it; the status to exit with."""
    from casemate.errors import CasemateError
    from casemate.sdk import Client, Sandbox

    failed, done = False, []
    with Client() as client:
        for ref in refs:
            try:
                sandbox = Sandbox.connect(ref, client=client)
                line = act(sandbox)
            except CasemateError as error:
                failed = True
                print(f"error: {ref}: {error}", file=sys.stderr)
                continue
            done.append(dict(sandbox.info.raw))
            if not as_json:
                print(line, flush=True)
    if as_json:
        print(json.dumps({"sandboxes": done}))
    return 1 if failed else 0
