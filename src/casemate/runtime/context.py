"""A context: one engine that lives, and the agent's orders to it, one after another.

    agent ─▶ {"op": "cell", "id", "code" | "code_fd", "stdin_fd"?, "limits"?, "seed"?, "env"?}
             {"op": "complete", "id", "code" | "code_fd", "cursor"}
             {"op": "inspect", "id", "code" | "code_fd", "cursor", "detail"}
    agent ◀─ {"event": "ready", "about", "reseed_signal", "twisters"} or {"event": "failed", "reason"};
             then for each order any number of
             {"event": "result", "id", "body" | "size" and a memory file}, and one
             {"event": "end", "id", "end", "count", "left_out"?}

What is written to descriptors 1 and 2 is the agent's to read (streams.py). An end is sent after everything was
flushed: what a cell wrote is in the pipes by then. SIGINT interrupts a cell and is ignored between cells.
"""

import array
import errno
import importlib.util
import json
import os
import signal
import socket
import sys
import threading
import zipimport
from contextlib import suppress
from functools import partial
from hashlib import blake2b
from typing import Any, Callable, Dict, List, NamedTuple, Optional, Tuple

from . import child, failures, formats, reseed, results, surroundings
from .engines import Engine, EngineMissing, Limits, open_engine
from .streams import SOCKET, Streams

_INLINE_LIMIT = 48 * 1024
_CODE_LIMIT = 16 * 1024 * 1024
_REASON_LIMIT = 2_000
_INSPECTED_LIMIT = 40_000  # characters of each type
_encode, _getpid, _urandom = json.dumps, os.getpid, os.urandom
_attached: Optional[Tuple[socket.socket, str]] = None


def attach(sock: socket.socket, language: str) -> None:
    global _attached
    _attached = (sock, language)


def rehearse(script: str) -> None:
    """What comes between a job and the end of a first cell, as far as it leaves no trace (see child.py)."""
    importlib.util.find_spec("usercustomize")  # the next thing the site module asks for
    with suppress(ImportError):
        zipimport.zipimporter(script)  # as CPython asks of every script
    with open(script, "rb") as file:
        compile(file.read(), script, "exec")
    signal.signal(signal.SIGINT, signal.signal(signal.SIGINT, signal.SIG_IGN))
    data, metadata = sys.modules[child.PACKAGE + ".python_engine"].rehearse()
    results.encode({"type": "result", "data": data, "metadata": metadata}, Limits())
    failures.bounded({"kind": "ok"}, Limits())


def main() -> None:
    """Serve cells until the agent hangs up; then leave as any Python does (atexit, threads)."""
    assert _attached is not None
    sock, language = _attached
    sys.argv = [""]
    sys.path[0] = ""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    context = Context(sock)
    try:
        engine = open_engine(language)
    except EngineMissing as missing:
        return child.send(sock, {"event": "failed", "reason": str(missing)[:_REASON_LIMIT]})
    except Exception as error:
        reason = "%s can't be started: %s: %s" % (language, type(error).__name__, error)
        return child.send(sock, {"event": "failed", "reason": reason[:_REASON_LIMIT]})
    context.reseed_on_signal(engine)
    more = {"reseed_signal": reseed.SIGNAL, "twisters": getattr(engine, "twisters", 0)}
    child.send(sock, {"event": "ready", "about": engine.about, **more})
    try:
        context.serve(engine)
    finally:
        engine.close()


class _Order(NamedTuple):
    number: int
    limits: Limits
    code: str
    stdin: Optional[int]
    asks: Optional[Dict[str, Any]]  # None: it is a cell


class Context:
    """Orders in, results and ends out."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self._pid = os.getpid()
        self._count = 0
        self._streams = Streams()
        self._on_interrupt: Any = signal.default_int_handler
        self._sending = threading.Lock()  # threads show results, too
        self._number: Optional[int] = None  # the order that results belong to
        self._limits = Limits()
        self._shown = 0
        self._is_copied = False

    def reseed_on_signal(self, engine: Engine) -> None:
        """The agent sends it to what is frozen in a copy of the sandbox: it comes before anything else happens here.

        Calls that wait are broken off by it, on purpose: else a main thread that waits for others would not hear of it
        before they are done. Python waits on by itself. What is forked inherits the handler, what is executed doesn't.
        """
        now = getattr(engine, "reseed_now", None)

        def on_copied(number: int, frame: Any) -> None:
            self._is_copied = True
            try:
                if now is not None:
                    now(_urandom(64))
            except Exception as error:
                _tell(error)

        signal.signal(reseed.SIGNAL, on_copied)

    def serve(self, engine: Engine) -> None:
        """One order after another, until the agent hangs up."""
        idle = getattr(engine, "idle", None)
        while True:
            if idle is not None:
                _survived(partial(idle, self._sock))
                if _getpid() != self._pid:
                    os._exit(0)
            try:
                message, fds = child.receive(self._sock, 2)
            except EOFError:
                return
            if "env" in message:  # it waited before it was known whose it would be
                surroundings.replace_environ(message["env"])
            if "seed" in message or self._is_copied:
                _survived(partial(engine.reseed, self._own_entropy(bytes.fromhex(message.get("seed", "")))))
            try:
                order = _read_order(message, fds)
            except UnicodeDecodeError as error:
                end = _not_utf8(error)
            except OSError as error:
                end = failures.describe(error, Limits())
            else:
                end = self._carry_out(engine, order)
            child.send(self._sock, self._closing(message["id"], end))

    def _own_entropy(self, given: bytes) -> bytes:
        """An order may have been on its way when the sandbox was copied: it is the same in all copies."""
        if not self._is_copied:
            return given
        self._is_copied = False
        return blake2b(given + _urandom(64)).digest()

    def _carry_out(self, engine: Engine, order: _Order) -> Dict[str, Any]:
        self._begin(order)
        end: Dict[str, Any] = {}
        failure: Optional[BaseException] = None
        try:
            signal.signal(signal.SIGINT, self._on_interrupt)
            end = self._act(engine, order)
            self._streams.flush()  # while it can be interrupted: nobody may be reading
        except KeyboardInterrupt:
            end = end or {"kind": "interrupted"}
        except BaseException as error:  # an engine tells its errors itself; so this one is its own
            failure = error
        _until_uninterrupted(self._ignore_interrupts)
        _until_uninterrupted(self._streams.flush)
        if failure is not None:
            end = failures.describe(failure, order.limits)
        if _getpid() != self._pid:
            _leave_fork(end)
        if order.stdin is not None:
            self._streams.give_stdin(None)
            _close(order.stdin)
        return failures.bounded(end, order.limits)

    def _begin(self, order: _Order) -> None:
        self._streams.restore()
        if order.stdin is not None:
            self._streams.give_stdin(order.stdin)
        if order.asks is None:
            self._count += 1
        self._limits, self._shown = order.limits, 0
        self._number = order.number

    def _act(self, engine: Engine, order: _Order) -> Dict[str, Any]:
        if order.asks is None:
            return engine.run(order.code, order.stdin, self.show, order.limits)
        cursor = order.asks["cursor"]
        if order.asks["op"] == "inspect":
            answer = engine.inspect(order.code, cursor, order.asks["detail"])
            answer["data"] = {mime: text[:_INSPECTED_LIMIT] for mime, text in answer["data"].items()}
        else:
            answer = engine.complete(order.code, cursor)
        self._send_result(order.number, _encode(answer))
        return {"kind": "ok"}

    def show(self, body: Dict[str, Any]) -> None:
        """Send a result of the current cell. In a forked process, and between cells, its text is printed instead."""
        number = self._number
        if number is None or _getpid() != self._pid:
            return formats.printed(body)
        self._shown += 1
        if self._shown > self._limits.results:
            return None
        text = results.encode(body, self._limits)
        self._streams.turn_to(SOCKET)
        with self._sending:
            if self._number == number:
                return self._send_result(number, text)
        return formats.printed(body)

    def _send_result(self, number: int, text: str) -> None:
        message = {"event": "result", "id": number}
        if len(text) < _INLINE_LIMIT:
            return child.send(self._sock, {**message, "body": text})
        memory = os.memfd_create("result")
        try:
            with open(memory, "wb", closefd=False) as file:
                file.write(text.encode("ascii"))
            os.lseek(memory, 0, os.SEEK_SET)
            packet = _encode({**message, "size": len(text)}).encode("ascii")
            self._sock.sendmsg([packet], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [memory]))])
        finally:
            os.close(memory)
        return None

    def _closing(self, number: int, end: Dict[str, Any]) -> Dict[str, Any]:
        with self._sending:
            self._number = None
        message = {"event": "end", "id": number, "end": end, "count": self._count}
        if self._shown > self._limits.results:
            message["left_out"] = self._shown - self._limits.results
        return message

    def _ignore_interrupts(self) -> None:
        handler = signal.getsignal(signal.SIGINT)
        if handler is not signal.SIG_IGN:
            self._on_interrupt = handler
        signal.signal(signal.SIGINT, signal.SIG_IGN)


def _read_order(message: Dict[str, Any], fds: List[int]) -> _Order:
    """Raises UnicodeDecodeError; OSError when the cells before have left no descriptor for what comes along."""
    if len(fds) < bool(message.get("stdin_fd")) + bool(message.get("code_fd")):
        for fd in fds:
            os.close(fd)
        raise OSError(errno.EMFILE, "the code, or stdin, needs a descriptor, and this context has too many files open")
    stdin = fds.pop() if message.get("stdin_fd") else None
    if message.get("code_fd"):
        with open(fds.pop(), "rb") as file:
            try:
                code = file.read(_CODE_LIMIT).decode("utf-8")
            except UnicodeDecodeError:
                if stdin is not None:
                    os.close(stdin)
                raise
    else:
        code = message["code"]
    asked = message.get("limits") or {}
    limits = Limits(**{name: asked[name] for name in Limits._fields if type(asked.get(name)) is int})
    return _Order(message["id"], limits, code, stdin, message if message["op"] != "cell" else None)


def _survived(act: Callable[[], None]) -> None:
    """What is done between cells goes through what cells may have replaced: a failure must not end the context."""
    try:
        act()
    except BaseException as error:
        _tell(error)


def _tell(error: BaseException) -> None:
    text = failures.format_error(error, _REASON_LIMIT)
    try:
        os.write(2, text.encode("utf-8", "backslashreplace"))
    except OSError:
        return  # the cell closed it


def _close(fd: int) -> None:
    try:
        os.close(fd)
    except OSError:
        return  # the cell did


def _not_utf8(error: UnicodeDecodeError) -> Dict[str, Any]:
    value = "(unicode error) %s" % error
    return {"kind": "error", "name": "SyntaxError", "value": value, "traceback": "SyntaxError: %s\n" % value}


def _until_uninterrupted(act: Callable[[], None]) -> None:
    """A SIGINT that comes just after the cell must not end the context."""
    while True:
        try:
            return act()
        except KeyboardInterrupt:
            continue


def _leave_fork(end: Dict[str, Any]) -> None:
    """A process that the cell forked has come to the cell's end."""
    if end["kind"] == "ok":
        os._exit(0)
    try:
        os.write(2, end.get("traceback", "").encode("utf-8", "backslashreplace"))
    finally:
        os._exit(1)
