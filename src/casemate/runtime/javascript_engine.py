"""JavaScript: one living Node for each context (javascript_loop.js), asked over three sockets.

It writes to descriptors 1 and 2 itself, and where the order among them and the results matters it waits for our byte.
"""

import fcntl
import json
import os
import shutil
import socket
import termios
import time
from typing import Any, Dict, List, Optional

from .calling_object import calling
from .companion import READY_S, Companion, Interrupts
from .engines import EngineMissing, Limits, Show

_LOOP = os.path.join(os.path.dirname(os.path.abspath(__file__)), "javascript_loop.js")
_LINE_LIMIT = 96 * 1024 * 1024
_READ_SIZE = 256 * 1024
_PATIENCE_S = 0.2  # how long what is interrupted may take to say so, before it is stopped
_SETTLE_S = 5.0
_COMPLETE_S = 5.0
_FLAGS = (
    "--expose-internals",  # for its parser
    "--no-force-async-hooks-checks",  # else a timer's callback that is stopped takes Node with it
    "--no-warnings",
)


class JavaScriptEngine:
    def __init__(self, language: str) -> None:
        path = shutil.which("node") or shutil.which("nodejs")
        if path is None:
            raise EngineMissing("there is no node in this image; the image python-full has one")
        self._interrupts = Interrupts()
        self._unread = bytearray()
        self._serial = 0
        self._cells = 0
        self._stops = 0
        self._is_saying = False
        self._late_entropy: Optional[bytes] = None
        self._stdin = os.memfd_create("stdin")
        self._orders, self._answers, self._stop = self._start(path)
        self.about = {"language": "javascript", "version": self._wait_ready()}

    def _start(self, path: str) -> List[socket.socket]:
        pairs = [socket.socketpair() for _ in range(3)]
        poll = _memory_file("reseed.node", calling("RAND_poll"))
        numbers = [*(theirs.fileno() for _, theirs in pairs), poll]
        self._companion = Companion([path, *_FLAGS, _LOOP, *map(str, numbers)], numbers, stdin=self._stdin)
        os.close(poll)
        for _, theirs in pairs:
            theirs.close()
        return [ours for ours, _ in pairs]

    def _wait_ready(self) -> str:
        deadline = time.monotonic() + READY_S
        while time.monotonic() < deadline:
            answer = self._next(deadline - time.monotonic())
            if answer.get("event") == "ready":
                return str(answer.get("version"))[:100]
        self.close()
        raise EngineMissing("node did not answer within %d s" % READY_S)

    def run(self, code: str, stdin: Optional[int], show: Show, limits: Limits) -> Dict[str, Any]:
        self._cells += 1
        self._give_stdin(stdin)
        with self._interrupts:
            number = self._order({"op": "cell", "code": code, "file": "cell-%d.js" % self._cells})
            before = self._stops
            end = self._follow(number, show)
            if self._stops > before:
                self._settle()
            if self._interrupts.count:
                return {"kind": "interrupted"}
        return end

    def _follow(self, number: int, show: Show) -> Dict[str, Any]:
        """Serve the cell until it ends. One that is interrupted and doesn't say so at once is stopped where it is."""
        told = 0
        while True:
            if self._interrupts.count > told:
                told = self._interrupts.count
                self._say({"op": "interrupt", "id": number})
            answer = self._next(_PATIENCE_S if told else None)
            event = answer.get("event")
            if event == "turn":
                self._wait_until_read()
                self._answers.sendall(b"\n")
            elif event == "show":
                body = _checked(answer.get("body"))
                if body is not None:
                    show(body)
                self._answers.sendall(b"\n")
            elif event == "end" and answer.get("id") == number and isinstance(answer.get("end"), dict):
                end: Dict[str, Any] = answer["end"]
                return end
            elif event is None and told:
                self._stops += 1
                self._stop.sendall(b"%d\n" % number)
                self._say({"op": "interrupt", "id": number})

    def _settle(self) -> None:
        """Until Node has seen every stop: one that comes late would take the next cell, or a timer of the user's."""
        deadline = time.monotonic() + _SETTLE_S
        while time.monotonic() < deadline:
            number = self._order({"op": "settle"})
            until = time.monotonic() + _PATIENCE_S
            answer: Dict[str, Any] = {}
            while time.monotonic() < until and answer.get("id") != number:
                answer = self._next(max(0.0, until - time.monotonic()))
            if answer.get("event") == "settled" and answer.get("stops") == self._stops:
                return

    def _wait_until_read(self) -> None:
        """Until the agent has read what Node wrote: only then may it write to another of the two."""
        pause_s = 0.00005
        while not self._interrupts.count and any(_unread(fd) for fd in (1, 2)):
            self._interrupts.wait(self._companion.death, timeout_s=pause_s)
            pause_s = min(pause_s * 2, 0.005)

    def _give_stdin(self, stdin: Optional[int]) -> None:
        """Node shares this file and its place in it; it could not be given another one."""
        os.ftruncate(self._stdin, 0)
        os.lseek(self._stdin, 0, os.SEEK_SET)
        if stdin is not None:
            with open("/proc/self/fd/%d" % stdin, "rb") as given, open(self._stdin, "wb", closefd=False) as file:
                shutil.copyfileobj(given, file)
            os.lseek(self._stdin, 0, os.SEEK_SET)

    def _order(self, order: Dict[str, Any]) -> int:
        self._serial += 1
        number = self._serial  # reseed_now may come in between
        self._say({**order, "id": number})
        return number

    def _say(self, order: Dict[str, Any]) -> None:
        self._is_saying = True
        self._send(order)
        self._is_saying = False
        if self._late_entropy is not None:
            entropy, self._late_entropy = self._late_entropy, None
            self.reseed(entropy)

    def _send(self, order: Dict[str, Any]) -> None:
        try:
            self._orders.sendall(json.dumps(order).encode() + b"\n")
        except OSError:
            if self._interrupts.wait(self._companion.death, timeout_s=READY_S):
                self._companion.follow()
            raise

    def _next(self, timeout_s: Optional[float]) -> Dict[str, Any]:
        """The next answer; empty after *timeout_s* or an interrupt. When Node has died, so do we."""
        deadline = None if timeout_s is None else time.monotonic() + timeout_s
        while b"\n" not in self._unread:
            left = None if deadline is None else max(0.0, deadline - time.monotonic())
            ready = self._interrupts.wait(self._answers, self._companion.death, timeout_s=left)
            data = self._answers.recv(_READ_SIZE) if self._answers in ready else b""
            if not data and self._companion.death in ready:
                self._companion.follow()
            if not data:
                return {}
            self._unread += data
            if len(self._unread) > _LINE_LIMIT:
                raise RuntimeError("node says more than %d bytes in a line" % _LINE_LIMIT)
        line, _, self._unread = self._unread.partition(b"\n")
        try:
            answer = json.loads(line)
        except (ValueError, RecursionError):
            return {"event": "nonsense"}  # a cell wrote to our descriptor
        return answer if isinstance(answer, dict) else {"event": "nonsense"}

    def complete(self, code: str, cursor: int) -> Dict[str, Any]:
        deadline = time.monotonic() + _COMPLETE_S
        with self._interrupts:
            number = self._order({"op": "complete", "code": code, "cursor": _units(code[:cursor])})
            while time.monotonic() < deadline and not self._interrupts.count:
                answer = self._next(deadline - time.monotonic())
                if answer.get("event") == "completed" and answer.get("id") == number:
                    word = cursor - (int(answer["end"]) - int(answer["start"]))
                    return {"matches": [str(match) for match in answer["matches"]], "start": word, "end": cursor}
        return {"matches": [], "start": cursor, "end": cursor}

    def inspect(self, code: str, cursor: int, detail: int) -> Dict[str, Any]:
        return {"found": False, "data": {}}  # Node knows no descriptions

    def reseed(self, entropy: bytes) -> None:
        self._order({"op": "reseed", "entropy": entropy[:32].ljust(32, b"\0").hex()})

    def reseed_now(self, entropy: bytes) -> None:
        """In a signal's handler. Node hears of it between two turns of its loop: a cell that awaits draws anew then."""
        if self._is_saying:
            self._late_entropy = entropy  # an order is halfway out
        else:
            self.reseed(entropy)

    def close(self) -> None:
        self._companion.end()
        for sock in (self._orders, self._answers, self._stop):
            sock.close()


def _checked(body: Any) -> Optional[Dict[str, Any]]:
    """A result's body, if it is one: a cell can write to our descriptor, too."""
    if not isinstance(body, dict) or not isinstance(body.get("data"), dict):
        return None
    if body.get("type") not in ("result", "display") or not isinstance(body.get("metadata", {}), dict):
        return None
    return body


def _memory_file(name: str, content: bytes) -> int:
    memory = os.memfd_create(name)
    with open(memory, "wb", closefd=False) as file:
        file.write(content)
    return memory


def _units(text: str) -> int:
    """How JavaScript counts: in units of UTF-16."""
    return len(text.encode("utf-16-le", "surrogatepass")) // 2


def _unread(fd: int) -> bool:
    try:
        return fcntl.ioctl(fd, termios.FIONREAD, b"\0\0\0\0") != b"\0\0\0\0"
    except OSError:  # it is no pipe
        return False
