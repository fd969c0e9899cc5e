"""The default context: runs one cell after another in one living namespace.

The agent sends each cell's code as a memory file, reads what is written to descriptors 1 and 2, and
interrupts with SIGINT. An end message is sent after everything was flushed, so what a cell wrote is in
the pipes by then.
"""

import ast
import builtins
import json
import linecache
import os
import signal
import socket
import sys
import traceback
import types
from typing import Any, Dict, List, Optional

from . import child
from .reseed import reseed

_CODE_LIMIT = 16 * 1024 * 1024
_LIMITS = {
    "text": 40_000,
    "traceback": 32_000,
    "value": 8_000,
    "name": 200,
}  # bytes of JSON; one frame is 64 KiB
_sock: Optional[socket.socket] = None


def attach(sock: socket.socket) -> None:
    global _sock
    _sock = sock


def main() -> None:
    """Serve cells until the agent hangs up; then leave as any Python does (atexit, threads)."""
    assert _sock is not None
    sys.argv = [""]
    sys.path[0] = ""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    context = Context()
    while True:
        try:
            order, fds = child.receive(_sock, 1)
        except EOFError:
            return
        code = _read_code(fds[0])
        if "seed" in order:
            reseed(bytes.fromhex(order["seed"]))
        child.send(_sock, {"event": "end", "id": order["id"], **context.run(code)})


def _read_code(fd: int) -> bytes:
    with open(fd, "rb") as file:
        return file.read(_CODE_LIMIT)


class Context:
    """One namespace, `__main__` to the code in it."""

    def __init__(self) -> None:
        self._pid = os.getpid()
        self._count = 0
        self._on_interrupt: Any = signal.default_int_handler
        self._futures = 0
        module = types.ModuleType("__main__", "The default context.")
        module.__dict__["__builtins__"] = builtins
        sys.modules["__main__"] = module
        self._names = module.__dict__

    def run(self, code: bytes) -> Dict[str, Any]:
        """Run one cell to its end; whatever it does short of ending the process is in the answer."""
        self._count += 1
        filename = "<cell %d>" % self._count
        end: Dict[str, Any] = {"end": {"kind": "ok"}, "text": None}
        try:
            signal.signal(signal.SIGINT, self._on_interrupt)
            end["text"] = self._execute(code, filename)
        except BaseException as error:  # SystemExit and KeyboardInterrupt are a cell's result too
            problem = error
            end["end"] = _until_uninterrupted(lambda: _describe(problem))
            problem.__traceback__ = None
        _until_uninterrupted(self._settle)
        if os.getpid() != self._pid:
            os._exit(0)  # a process that the cell forked has come to the cell's end
        return end

    def _execute(self, code: bytes, filename: str) -> Optional[str]:
        text = code.decode("utf-8")
        linecache.cache[filename] = (len(text), None, text.splitlines(True), filename)
        body = self._compile(text, filename, "exec", ast.PyCF_ONLY_AST)
        last = body.body.pop() if body.body and isinstance(body.body[-1], ast.Expr) else None
        exec(self._compile(body, filename, "exec"), self._names)
        if last is None:
            return None
        value = eval(self._compile(ast.Expression(last.value), filename, "eval"), self._names)  # noqa: S307  our purpose
        if value is None:
            return None
        builtins._ = value  # type: ignore[attr-defined]
        return _cut("text", repr(value))

    def _compile(self, source: Any, filename: str, mode: str, flags: int = 0) -> Any:
        compiled = compile(source, filename, mode, flags | self._futures, True)
        if isinstance(compiled, types.CodeType):
            self._futures |= compiled.co_flags & _FUTURES
        return compiled

    def _settle(self) -> None:
        handler = signal.getsignal(signal.SIGINT)
        if handler is not signal.SIG_IGN:
            self._on_interrupt = handler
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        for stream in (sys.stdout, sys.stderr):
            try:
                stream.flush()
            except (AttributeError, OSError, ValueError):
                continue  # the cell closed or replaced it


def _futures() -> int:
    import __future__

    names: List[str] = __future__.all_feature_names
    return sum(getattr(__future__, name).compiler_flag for name in names)


_FUTURES = _futures()


def _until_uninterrupted(act: Any) -> Any:
    """A SIGINT that comes just after the cell must not end the context."""
    while True:
        try:
            return act()
        except KeyboardInterrupt:
            continue


def _describe(error: BaseException) -> Dict[str, Any]:
    kind = type(error)
    try:
        value = str(error)
    except Exception as second:  # the user's __str__
        value = "<unprintable: %s>" % type(second).__name__
    _hide_ourselves(error)
    try:
        text = "".join(traceback.format_exception(kind, error, error.__traceback__))
    except Exception:  # the user's __repr__, __notes__, ...
        text = kind.__name__ + "\n"
    return {
        "kind": "error",
        "name": _cut("name", kind.__name__),
        "value": _cut("value", value),
        "traceback": _cut("traceback", text),
    }


def _hide_ourselves(error: BaseException) -> None:
    """Drop the frames of this file from the top of the traceback."""
    frame = error.__traceback__
    while frame is not None and frame.tb_frame.f_code.co_filename == __file__:
        frame = frame.tb_next
    error.__traceback__ = frame


def _cut(kind: str, text: str) -> str:
    limit = keep = _LIMITS[kind]
    shown = text if len(text) <= keep else _middle_out(text, keep)
    while len(json.dumps(shown)) > limit:
        keep = keep * 2 // 3
        shown = _middle_out(text, keep)
    return shown


def _middle_out(text: str, keep: int) -> str:
    left_out = max(0, len(text) - keep)
    return text[: keep // 2] + "\n... %d characters left out ...\n" % left_out + text[-(keep // 2) :]
