"""``casemate mcp``: sandboxes as tools of an agent."""

from __future__ import annotations

import os
from functools import partial
from typing import Annotated

import typer

from casemate.cli import options
from casemate.errors import InvalidSpec

KEY_VARIABLE = "CASEMATE_MCP_KEY"


def mcp(
    http: Annotated[
        str | None, typer.Option("--http", metavar="HOST:PORT", help="Over HTTP instead of stdin and stdout.")
    ] = None,
    image: Annotated[str, typer.Option("--image", help="What the sandboxes start from.")] = "python",
    name: Annotated[str | None, typer.Option("--name", help="To call it by; not with --http.")] = None,
    memory_mib: Annotated[int | None, typer.Option("--memory", metavar="MIB", help="The guest's memory.")] = None,
    vcpus: Annotated[int | None, typer.Option("--vcpus", metavar="N", help="The guest's processors.")] = None,
    disk_mib: Annotated[int | None, typer.Option("--disk", metavar="MIB", help="Its writable disk.")] = None,
    env: Annotated[list[str] | None, typer.Option("--env", metavar="K=V", help="Set a variable; K: pass ours.")] = None,
    max_duration_s: Annotated[
        float | None, typer.Option("--max-duration", metavar="S", help="End a sandbox after S seconds.")
    ] = None,
    build: Annotated[bool, typer.Option("--build/--no-build", help="Build a snapshot that is missing.")] = True,
    allow_host: Annotated[
        list[str] | None, typer.Option("--allow-host", metavar="NAME", help="What HTTP clients may call us.")
    ] = None,
    allow_anonymous: Annotated[
        bool, typer.Option("--allow-anonymous", help="No key, although other machines can reach it.")
    ] = False,
    session_idle_s: Annotated[
        float,
        typer.Option("--session-idle", metavar="S", min=1, help="When a client is gone that keeps no stream open."),
    ] = 1800,
) -> None:
    """Serve sandboxes to an agent, over the Model Context Protocol.

    Tools: run_code, run_command, read_file, write_file, list_files. Each client session has a sandbox of its own, made
    at its first call and gone with its connection. Over HTTP a client shows the key in CASEMATE_MCP_KEY, if it is set,
    as a bearer token; an address that other machines can reach is refused without one. Needs casemate[mcp].

    Example:
      casemate mcp
      casemate mcp --http 127.0.0.1:8765 --memory 1024
    """
    if http is not None and name is not None:
        raise InvalidSpec("--name: with --http every session has a sandbox", hint="leave it out")
    variables = options.env_of(env or [])
    from casemate.integrations import mcp as integration

    integration.require()
    from casemate.integrations.mcp.server import log_to_stderr, serve_stdio
    from casemate.sdk import AsyncSandbox

    log_to_stderr()
    create = partial(
        AsyncSandbox.create,
        image,
        name=name,
        memory_mib=memory_mib,
        vcpus=vcpus,
        disk_mib=disk_mib,
        env=variables,
        max_duration_s=max_duration_s,
        idle_timeout_s=None,  # it lives as long as its client's connection
        attached=True,
        build=build,
    )
    if http is None:
        serve_stdio(create)
        return
    from casemate.integrations.mcp.http import Listen, serve_http

    host, port = address_of(http)
    key = os.environ.get(KEY_VARIABLE) or None
    names = tuple(allow_host or ())
    serve_http(create, Listen(host, port, key, allow_anonymous, names, session_idle_s))


def address_of(word: str) -> tuple[str, int]:
    host, colon, port = word.rpartition(":")
    if not (colon and host and port.isascii() and port.isdigit() and int(port) < 65536):
        raise InvalidSpec(f"--http {word}: not HOST:PORT", hint="as --http 127.0.0.1:8765")
    return host, int(port)
