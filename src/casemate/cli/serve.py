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
    listen: Annotated[
        str | None, typer.Option("--listen", metavar="HOST:PORT", help="Answer over TCP too, to who has an API key.")
    ] = None,
    tls_cert: Annotated[str | None, typer.Option("--tls-cert", metavar="FILE", help="A certificate, in PEM.")] = None,
    tls_key: Annotated[str | None, typer.Option("--tls-key", metavar="FILE", help="Its key, in PEM.")] = None,
    behind_proxy: Annotated[
        str | None,
        typer.Option("--behind-proxy", metavar="ADDRESS", help="Who does TLS instead; only they may connect."),
    ] = None,
    allow_host: Annotated[
        list[str] | None,
        typer.Option("--allow-host", metavar="NAME", help="A name that requests may call us by; may be repeated."),
    ] = None,
) -> None:
    """Run the daemon in the foreground.

    Until Ctrl-C. Without it, one is started when it is needed. An address that other machines reach needs
    --tls-cert and --tls-key, or --behind-proxy.

    Example:
      casemate serve --listen 0.0.0.0:8443 --tls-cert cert.pem --tls-key key.pem --allow-host box.example.com
    """
    if no_overcommit:
        os.environ["CASEMATE_COMMIT_RATIO"] = "1.0"
    given = {"--listen": listen, "--tls-cert": tls_cert, "--tls-key": tls_key, "--behind-proxy": behind_proxy}
    words = [f"{flag}={value}" for flag, value in given.items() if value is not None]
    words += [f"--allow-host={name}" for name in allow_host or []]
    sys.stdout.flush()
    argv = [sys.executable, "-m", "casemate.daemon", *words]
    os.execv(sys.executable, argv)  # its signals are the daemon's, not ours
