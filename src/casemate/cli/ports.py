"""``casemate ports``: what listens in a sandbox."""

from __future__ import annotations

from typing import Annotated

import typer


def ports(
    ref: Annotated[str, typer.Argument(metavar="SANDBOX", help="Its id, the beginning of it, or its name.")],
    as_json: Annotated[bool, typer.Option("--json", help="One object.")] = False,
) -> None:
    """List the TCP ports that programs in a sandbox listen on.

    Example:
      casemate ports work
    """
    import json
    from dataclasses import asdict

    from casemate.cli.table import print_table
    from casemate.sdk import Client, Sandbox

    with Client() as client:
        found = Sandbox.connect(ref, client=client).ports.list()
    if as_json:
        print(json.dumps({"ports": [asdict(port) for port in found]}))
    else:
        print_table(("PORT", "ADDRESS", "UID"), [(str(port.port), port.address, str(port.uid)) for port in found])
