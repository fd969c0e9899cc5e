"""The command line: a client of the SDK. One file per verb, and only the verb that is used is imported."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence
from importlib import import_module
from typing import Any

# verb → (module, function; a Typer app of its own verbs). The help shows them in this order.
VERBS = {
    "setup": ("setup", "setup"),
    "run": ("run", "run"),
    "create": ("create", "create"),
    "exec": ("exec", "exec_"),
    "shell": ("shell", "shell"),
    "attach": ("attach", "attach"),
    "repl": ("repl", "repl"),
    "context": ("context", "app"),
    "notebook": ("notebook", "app"),
    "kernel": ("kernel", "app"),
    "mcp": ("mcp", "mcp"),
    "cp": ("cp", "cp"),
    "logs": ("logs", "logs"),
    "ports": ("ports", "ports"),
    "forward": ("forward", "forward"),
    "ps": ("ps", "ps"),
    "suspend": ("suspend", "suspend"),
    "resume": ("resume", "resume"),
    "fork": ("fork", "fork"),
    "snapshot": ("snapshot", "snapshot"),
    "keep-alive": ("keep_alive", "keep_alive"),
    "kill": ("kill", "kill"),
    "inspect": ("inspect", "inspect"),
    "top": ("top", "top"),
    "image": ("image", "app"),
    "snapshots": ("snapshots", "app"),
    "pool": ("pool", "app"),
    "vmm": ("vmm", "app"),
    "doctor": ("doctor", "doctor"),
    "config": ("config", "app"),
    "completion": ("completion", "completion"),
    "serve": ("serve", "serve"),
    "daemon": ("daemon", "app"),
    "key": ("key", "app"),
    "events": ("events", "events"),
    "audit": ("audit", "app"),
    "bench": ("bench", "bench"),
    "version": ("version", "version"),
}
TAKES_THE_REST = frozenset({"run", "exec", "shell"})  # what follows the first word is not ours to look at
COMPLETING = "_CASEMATE_COMPLETE"  # set by the script of ``casemate completion``
FAILED, USAGE, INTERRUPTED = 1, 2, 130
CONSOLE_LINES = 12


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one verb; the exit status. Errors are one line on stderr, whole with CASEMATE_DEBUG=1."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    try:
        return _complete() if COMPLETING in os.environ else _run(words)
    except KeyboardInterrupt:
        return INTERRUPTED
    except Exception as error:
        if isinstance(error, BrokenPipeError) or type(error).__name__ == "ReaderLeft":
            return _die_of_broken_pipe()
        if os.environ.get("CASEMATE_DEBUG"):
            raise
        _flush()
        print(f"error: {_said(error, words)}", file=sys.stderr)
        for line in _console(error):
            print(f"  | {line}", file=sys.stderr)
        return int(getattr(error, "exit_code", FAILED))


def _run(words: list[str]) -> int:
    if words[:1] == ["--version"]:
        words = ["version"]
    app = _app([words[0]] if words and words[0] in VERBS else list(VERBS))
    status = app(args=words or ["--help"], prog_name="casemate", standalone_mode=False, obj=words)
    sys.stdout.flush()
    return status if isinstance(status, int) else 0


def _complete() -> int:
    from casemate.cli.completion import complete

    return complete(_app(list(VERBS)))


def _app(verbs: list[str]) -> Any:
    import typer  # late: --version and errors do without

    app = typer.Typer(
        help="MicroVMs on your own machine for code nobody has reviewed.",
        rich_markup_mode=None,
        add_completion=False,
        pretty_exceptions_enable=False,
        context_settings={"help_option_names": ["-h", "--help"]},
    )
    app.callback()(_no_options)
    for verb in verbs:
        module, name = VERBS[verb]
        found = getattr(import_module(f"casemate.cli.{module}"), name)
        if isinstance(found, typer.Typer):
            app.add_typer(found, name=verb)
        else:
            settings = {"allow_interspersed_args": False} if verb in TAKES_THE_REST else {}
            app.command(verb, help=_help(found), context_settings=settings)(found)
    return app


def __getattr__(name: str) -> Any:
    """``app``: all verbs as Typer has them, for who documents or completes them."""
    if name == "app":
        return _app(list(VERBS))
    raise AttributeError(f"module 'casemate.cli' has no attribute {name!r}")


def _no_options() -> None:
    """Makes Typer treat even a single verb as one of several."""


def _help(found: Callable[..., Any]) -> str:
    r"""A verb's docstring. Its example is a paragraph that is not to be wrapped (click's mark is \b)."""
    text = (found.__doc__ or "").strip()
    return "\n".join(line.removeprefix("    ") for line in text.splitlines()).replace("\nExample", "\n\b\nExample")


def _said(error: Exception, words: list[str]) -> str:
    from casemate.errors import CasemateError

    if isinstance(error, CasemateError):
        return " ".join(str(error).split())
    if hasattr(error, "format_message"):  # what the user typed
        verb = f" {words[0]}" if words and words[0] in VERBS else ""
        return f"{' '.join(error.format_message().split())} — see casemate{verb} --help"
    if type(error).__name__ == "Abort":
        return "not agreed to; nothing was done"
    return f"{type(error).__name__}: {error} — a fault of ours; CASEMATE_DEBUG=1 shows where"


def _console(error: Exception) -> list[str]:
    """What the guest's console said last; printable characters only, since the guest chose them."""
    text = str(getattr(error, "evidence", {}).get("console", ""))
    lines = ("".join(sign if sign.isprintable() else " " for sign in line).rstrip() for line in text.splitlines())
    return [line[:200] for line in lines if line][-CONSOLE_LINES:]


def _flush() -> None:
    try:
        sys.stdout.flush()
    except BrokenPipeError:
        sys.stdout = None  # nobody reads it any more


def _die_of_broken_pipe() -> int:
    """As every tool does whose reader has left: silently, by SIGPIPE."""
    import signal

    signal.signal(signal.SIGPIPE, signal.SIG_DFL)
    os.kill(os.getpid(), signal.SIGPIPE)
    return 128 + signal.SIGPIPE
