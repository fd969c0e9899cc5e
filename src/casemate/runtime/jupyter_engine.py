"""Any other language: a Jupyter kernel of the image's, through the image's jupyter_client.

The kernel is a process in a session of its own, which gets its interrupts as its kernelspec says; the streams it sends
are written to this process's, so that they keep their place among the results.
"""

import os
import queue
import re
import shutil
import signal
import sys
import tempfile
import time
from typing import Any, Dict, List, Optional, TextIO

from .companion import READY_S, Interrupts, error, leave_as
from .display import clearing
from .engines import EngineMissing, Limits, Show

_PREFIX = "jupyter:"
_TURN_S = 0.1  # how soon an interrupt, or that the kernel has died, is noticed
_REPLY_S = 10.0  # from the kernel's being idle to its reply
_IDLE_S = 3.0  # from its reply, when it has published nothing for a while, to its being idle
_INSIST_S = 2.0
_COMPLETE_S = 10.0
_ESCAPES = re.compile(r"\x1b\[[0-9;]*[A-Za-z]")
_END_OF_FILE = "\x04"  # Source: ipykernel's kernelbase.py, _input_request
_SEEDS = re.compile(r"\bseed\b|\bset_state\b|\bmanual_seed\b|\bRandomState\b|\bdefault_rng\b")
_RESEED = """\
def _reseed(hexes):
    import sys
    for name, size in (('random', None), ('numpy.random', 4), ('torch', None)):
        module = sys.modules.get(name)
        if name == 'torch' and module: module.manual_seed(int(hexes[:15], 16))
        elif size and module: module.seed([int(hexes[i:i + 8], 16) for i in range(0, 64, 8)])
        elif module: module.seed(int(hexes, 16))
_reseed('%s'); del _reseed
"""


class JupyterEngine:
    def __init__(self, language: str) -> None:
        # Python's kernel, and what looks for it, import a debugger that else complains of how it was started.
        os.environ.setdefault("PYDEVD_DISABLE_FILE_VALIDATION", "1")
        try:
            from jupyter_client.kernelspec import KernelSpecManager
            from jupyter_client.manager import KernelManager
        except ImportError as missing:
            reason = "no engine for %s: the image's Python has no jupyter_client (%s)"
            raise EngineMissing(reason % (language, missing)) from None
        known = KernelSpecManager(
            ensure_native_kernel=False
        )  # True imports ipykernel, and its debugger, into this process
        specs = {name: found["spec"] for name, found in known.get_all_specs().items()}
        self._kernel_name = choose_kernel(language, specs)
        self._folder = tempfile.mkdtemp(prefix="kernel-")
        connection = os.path.join(self._folder, "connection.json")
        # Sockets in a folder of its own: on the loopback every user of the guest could knock.
        where = {"connection_file": connection, "transport": "ipc"}
        self._manager: Any = KernelManager(kernel_name=self._kernel_name, kernel_spec_manager=known, **where)
        self._interrupts = Interrupts()
        self._seeded = False
        try:
            self._start()
            self.about = self._describe()
        except Exception as problem:
            self.close()
            raise EngineMissing("the kernel %s does not start: %s" % (self._kernel_name, problem)) from None

    def _start(self) -> None:
        before = signal.signal(signal.SIGINT, lambda *_: None)  # "ignored" would be the kernel's for good
        try:
            self._manager.start_kernel(cwd=os.getcwd())
        finally:
            signal.signal(signal.SIGINT, before)
        self._process = self._manager.provisioner.process
        self._client: Any = self._manager.blocking_client()
        self._lose_nothing()
        self._client.start_channels(hb=False)
        self._client.wait_for_ready(timeout=READY_S)

    def _lose_nothing(self) -> None:
        """A kernel drops what it publishes, that it is idle too, where a thousand messages wait on each side.

        So all wait on this one, in memory that is the user's: a cell that floods a slow reader may run out of it.
        What a kernel says faster than it can send is still lost.
        """
        import zmq

        self._client.context.setsockopt(zmq.RCVHWM, 0)

    def _describe(self) -> Dict[str, str]:
        reply = self._reply("shell", self._client.kernel_info(), READY_S)
        about = (reply or {}).get("language_info", {})
        language = str(about.get("name") or self._kernel_name)
        return {"language": language[:100], "version": str(about.get("version", ""))[:100]}

    def run(self, code: str, stdin: Optional[int], show: Show, limits: Limits) -> Dict[str, Any]:
        self._seeded = self._seeded or _SEEDS.search(code) is not None
        source = os.devnull if stdin is None else "/proc/self/fd/%d" % stdin
        with open(source, encoding="utf-8", errors="replace") as lines, self._interrupts:
            number = self._client.execute(code, allow_stdin=True, stop_on_error=False)
            end = self._follow(number, show, lines)
            return {"kind": "interrupted"} if self._interrupts.count else end

    def _follow(self, number: str, show: Show, lines: TextIO) -> Dict[str, Any]:
        """What the kernel publishes, until it is idle again."""
        end: Dict[str, Any] = {"kind": "ok"}
        reply: Optional[Dict[str, Any]] = None
        told_at = replied_at = 0.0
        while reply is None or time.monotonic() - replied_at < _IDLE_S:
            if self._interrupts.count and time.monotonic() - told_at > _INSIST_S:
                told_at = time.monotonic()
                self._manager.interrupt_kernel()
            self._answer_input(lines)
            message = self._next("iopub", _TURN_S)
            if message is None:
                if reply is None:  # all it has published was read: it is to be idle soon, if it tells us so
                    reply, replied_at = self._reply("shell", number, 0.0), time.monotonic()
                continue
            kind, content = message["msg_type"], message["content"]
            ours = message.get("parent_header", {}).get("msg_id") == number
            if kind == "stream":
                self._write(content)
            elif kind in _SHOWN:
                show(_body(kind, content))
            elif kind == "clear_output":
                show(clearing(content.get("wait", False)))
            elif kind == "error" and ours:
                end = _failure(content)
            elif kind == "status" and ours and content.get("execution_state") == "idle":
                reply = reply or self._reply("shell", number, _REPLY_S) or {}
                break
        return _failure(reply) if end["kind"] == "ok" and reply.get("status") == "error" else end

    def _write(self, content: Dict[str, Any]) -> None:
        stream = sys.stderr if content.get("name") == "stderr" else sys.stdout
        stream.write(str(content.get("text", "")))
        stream.flush()

    def _answer_input(self, lines: TextIO) -> None:
        import zmq

        # Not msg_ready: that of jupyter_client 7 has to be awaited.
        asked = self._client.stdin_channel.socket.get(zmq.EVENTS) & zmq.POLLIN
        if asked and self._next("stdin", _TURN_S) is not None:
            line = lines.readline()
            self._client.input(line.rstrip("\n") if line else _END_OF_FILE)

    def _next(self, channel: str, timeout_s: float) -> Optional[Dict[str, Any]]:
        """The next message, None if there is none by then. When the kernel has died, so do we."""
        try:
            message: Dict[str, Any] = getattr(self._client, "get_%s_msg" % channel)(timeout=timeout_s)
            return message
        except queue.Empty:
            if self._process.poll() is not None:
                self._clean()
                leave_as(self._process.returncode)
            return None

    def _reply(self, channel: str, number: str, timeout_s: float) -> Optional[Dict[str, Any]]:
        """The content of the reply to the request *number*; None when it does not come."""
        deadline = time.monotonic() + timeout_s
        while True:
            message = self._next(channel, min(_TURN_S, timeout_s))
            if message is not None and message.get("parent_header", {}).get("msg_id") == number:
                content: Dict[str, Any] = message["content"]
                return content
            if time.monotonic() >= deadline:
                return None

    def complete(self, code: str, cursor: int) -> Dict[str, Any]:
        with self._interrupts:
            reply = self._reply("shell", self._client.complete(code, cursor), _COMPLETE_S) or {}
        start, end = reply.get("cursor_start"), reply.get("cursor_end")
        if not isinstance(start, int) or not isinstance(end, int):
            return {"matches": [], "start": cursor, "end": cursor}
        return {"matches": [str(match) for match in reply.get("matches", [])], "start": start, "end": end}

    def inspect(self, code: str, cursor: int, detail: int) -> Dict[str, Any]:
        with self._interrupts:
            reply = self._reply("shell", self._client.inspect(code, cursor, detail), _COMPLETE_S) or {}
        data = {str(mime): text for mime, text in (reply.get("data") or {}).items() if isinstance(text, str)}
        return {"found": bool(reply.get("found")) and bool(data), "data": data}

    def reseed(self, entropy: bytes) -> None:
        """Python's kernels only; of another's generators nothing is known. Code that speaks of seeds keeps its own."""
        if self.about["language"] == "python" and not self._seeded:
            number = self._client.execute(_RESEED % entropy[:32].hex(), silent=True, store_history=False)
            self._reply("shell", number, _REPLY_S)

    def close(self) -> None:
        if self._manager.has_kernel:
            self._manager.shutdown_kernel(now=True)
        self._clean()

    def _clean(self) -> None:
        shutil.rmtree(self._folder, ignore_errors=True)


_SHOWN = {"execute_result": "result", "display_data": "display", "update_display_data": "display"}


def choose_kernel(language: str, specs: Dict[str, Dict[str, Any]]) -> str:
    """The kernel by its own name, or by its language's. Raises EngineMissing that names those there are."""
    wanted = language[len(_PREFIX) :] if language.startswith(_PREFIX) else language
    if wanted in specs:
        return wanted
    if not language.startswith(_PREFIX):
        for name, spec in sorted(specs.items()):
            if wanted.lower() in (name.lower(), str(spec.get("language", "")).lower()):
                return name
    there = ", ".join("%s (%s)" % (name, spec.get("language")) for name, spec in sorted(specs.items()))
    raise EngineMissing("no kernel for %s; there are: %s" % (wanted[:100], there or "none"))


def _body(kind: str, content: Dict[str, Any]) -> Dict[str, Any]:
    body = {"type": _SHOWN[kind], "data": content.get("data", {}), "metadata": content.get("metadata", {})}
    name = content.get("transient", {}).get("display_id")
    if name is not None:
        body["display_id"] = str(name)
    if kind == "update_display_data":
        body["update"] = True
    return body


def _failure(content: Dict[str, Any]) -> Dict[str, Any]:
    lines: List[str] = content.get("traceback") or []
    trace = _ESCAPES.sub("", "\n".join(map(str, lines)))
    return error(str(content.get("ename") or "Error"), str(content.get("evalue", "")), trace)
