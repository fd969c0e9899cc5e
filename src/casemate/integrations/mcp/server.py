"""The server: what is told about it, how a call is done, and stdio."""

from __future__ import annotations

import logging
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import anyio
from mcp.server.context import ServerRequestContext
from mcp.server.lowlevel import Server
from mcp.server.stdio import stdio_server
from mcp.shared.exceptions import MCPError
from mcp_types import INVALID_PARAMS, CallToolRequestParams, CallToolResult, ListToolsResult, PaginatedRequestParams

from casemate import __version__
from casemate.errors import CasemateError, GuestError, Retry
from casemate.integrations.mcp import contents, tools
from casemate.integrations.mcp.progress import telling
from casemate.integrations.mcp.sessions import Create, Sessions, open_sessions

SESSION_HEADER = "mcp-session-id"
START_S = 900.0  # for a sandbox whose snapshot has to be built first

log = logging.getLogger(__name__)
Context = ServerRequestContext[Sessions, Any]


def make_server(sessions: Sessions) -> Server[Sessions]:
    """One for all *sessions*, which outlive it."""

    @asynccontextmanager
    async def lifespan(server: Server[Sessions]) -> AsyncIterator[Sessions]:
        yield sessions

    return Server(
        "casemate",
        version=__version__,
        title="Casemate: a microVM for code nobody has reviewed",
        instructions=tools.INSTRUCTIONS,
        lifespan=lifespan,
        on_list_tools=_list_tools,
        on_call_tool=_call_tool,
    )


async def _list_tools(ctx: Context, params: PaginatedRequestParams | None) -> ListToolsResult:
    return ListToolsResult(tools=[tool for tool, _ in tools.TOOLS.values()])


async def _call_tool(ctx: Context, params: CallToolRequestParams) -> CallToolResult:
    if params.name not in tools.TOOLS:
        raise MCPError(INVALID_PARAMS, f"there is no tool {params.name[:100]!r}; there are {', '.join(tools.TOOLS)}")
    tool, run = tools.TOOLS[params.name]
    given = params.arguments or {}
    session = _session_of(ctx)
    try:
        tools.check(tool, given)
        with anyio.fail_after(START_S):
            sandbox = await ctx.lifespan_context.sandbox(session)
        report = ctx.session.report_progress if ctx.meta and "progress_token" in ctx.meta else None
        with anyio.fail_after(tools.timeout_of(given) + tools.ANSWER_S):
            async with telling(report) as teller:
                result = await run(tools.Call(sandbox, teller), given)
    except CasemateError as error:
        result = contents.of_error(error)
    except TimeoutError:
        result = contents.of_error(_overdue(params.name))
    if result.is_error and (reason := await ctx.lifespan_context.forget_if_ended(session)) is not None:
        result.content.append(contents.lost(reason))
    return result


def _overdue(name: str) -> CasemateError:
    return GuestError(f"{name} was not answered in time; it was given up", retry=Retry.UNKNOWN)


def _session_of(ctx: Context) -> str:
    return str(ctx.request.headers.get(SESSION_HEADER, "")) if ctx.request is not None else ""


def log_to_stderr() -> None:
    """Never to stdout, which is the protocol's in stdio mode."""
    logging.basicConfig(stream=sys.stderr, level=logging.INFO, format="casemate mcp: %(levelname)s %(message)s")
    for name in ("httpx", "mcp"):  # a line per request, a line per message
        logging.getLogger(name).setLevel(logging.WARNING)


def serve_stdio(create: Create) -> None:
    """Serve the client at our standard input and output until it closes them.

    SIGINT and SIGTERM end us at once: a thread waits for the client's next line and can't be called back, and the
    daemon kills an attached sandbox when our connection breaks.
    """
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_DFL)
    anyio.run(_stdio, create)


async def _stdio(create: Create) -> None:
    async with open_sessions(create) as sessions, stdio_server() as (reads, writes):
        server = make_server(sessions)
        await server.run(reads, writes, server.create_initialization_options())
