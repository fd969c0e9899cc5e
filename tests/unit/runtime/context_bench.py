"""Stands where the agent does for one context: a real child of a real zygote, its socket and its two pipes.

Honest, but not the agent: it serves the socket before the pipes, reads one thing at a time, and remembers what came in
which order.
"""

from __future__ import annotations

import array
import json
import os
import select
import signal
import socket
import time
from dataclasses import dataclass, field
from typing import Any

from zygote_bench import RUNTIME, Bench

from casemate.guest.zygote import Child, Job

LIMIT_S = 20.0
_PACKET = 192 * 1024


class Silent(AssertionError):
    """Nothing came for too long. In a guest the agent ends such a context."""


@dataclass
class Seen:
    """What one cell did. `order` has ("stdout" | "stderr" | "result", …) as it came."""

    order: list[tuple[str, Any]] = field(default_factory=list)
    end: dict[str, Any] = field(default_factory=dict)
    count: int = 0
    message: dict[str, Any] = field(default_factory=dict)

    def _bytes(self, name: str) -> bytes:
        return b"".join(what for kind, what in self.order if kind == name)

    @property
    def stdout(self) -> str:
        return self._bytes("stdout").decode()

    @property
    def stderr(self) -> str:
        return self._bytes("stderr").decode()

    @property
    def results(self) -> list[dict[str, Any]]:
        return [what for kind, what in self.order if kind == "result"]

    @property
    def text(self) -> str | None:
        shown = [body["data"].get("text/plain") for body in self.results if body["type"] == "result"]
        return shown[-1] if shown else None

    @property
    def kind(self) -> str:
        return str(self.end["kind"])


class ContextBench:
    """One context of *language* from *bench*'s zygote."""

    def __init__(self, bench: Bench, language: str = "python", cwd: str = "/tmp", **env: str) -> None:
        self._serial = 0
        self.chunk = 65536  # bytes read at once
        bench.loop.run_until(lambda: len(bench.zygote._waiting) > 0)
        child = bench.zygote.take()
        assert child is not None
        null = os.open("/dev/null", os.O_RDONLY)
        (out, out_end), (err, err_end) = os.pipe(), os.pipe()
        self._pipes = {out: "stdout", err: "stderr"}
        self.status: list[int] = []
        job = Job([str(RUNTIME / "cells.py")], bench.env(**env), cwd, None)
        self.started_at = time.monotonic()
        assert bench.zygote.order(child, job, (null, out_end, err_end), self.status.append, context=language)
        for fd in (null, out_end, err_end):
            os.close(fd)
        self._bench, self._child = bench, child
        self.pid = child.pid
        self.socket = socket.socket(fileno=os.dup(child.peer.fileno()))
        self.socket.setblocking(False)
        self.first = self._message()
        assert self.first == {"event": "started"}, self.first
        self.ready = self._message()
        self.ready_s = time.monotonic() - self.started_at

    @property
    def child(self) -> Child:
        return self._child

    def run(self, code: str | bytes, **more: Any) -> Seen:
        self.order(code, **more)
        return self.read_to_end()

    def order(self, code: str | bytes, stdin: bytes | None = None, **more: Any) -> None:
        self._serial += 1
        message: dict[str, Any] = {"op": "cell", "id": self._serial, **more}
        fds = []
        if isinstance(code, str) and len(code) < 16 * 1024:
            message["code"] = code
        else:
            message["code_fd"] = True
            fds.append(_memory(code.encode() if isinstance(code, str) else code))
        if stdin is not None:
            message["stdin_fd"] = True
            fds.append(_memory(stdin))
        rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds).tobytes())] if fds else []
        self.socket.sendmsg([json.dumps(message).encode()], rights)
        for fd in fds:
            os.close(fd)

    def complete(self, code: str, cursor: int | None = None) -> dict[str, Any]:
        seen = self.run(code, op="complete", cursor=len(code) if cursor is None else cursor)
        assert seen.end == {"kind": "ok"}, seen
        (answer,) = seen.results
        return dict(answer)

    def inspect(self, code: str, cursor: int | None = None, detail: int = 0) -> dict[str, Any]:
        seen = self.run(code, op="inspect", cursor=len(code) if cursor is None else cursor, detail=detail)
        assert seen.end == {"kind": "ok"}, seen
        (answer,) = seen.results
        return dict(answer)

    def interrupt(self, after_s: float = 0.2) -> None:
        """SIGINT to the group, *after_s* from now, once it is not ignored any more."""
        time.sleep(after_s)
        deadline = time.monotonic() + LIMIT_S
        while self._ignores_interrupts():
            assert time.monotonic() < deadline, "the cell does not begin"
            time.sleep(0.001)
        os.killpg(self.pid, signal.SIGINT)

    def read_to_end(self, limit_s: float = LIMIT_S) -> Seen:
        seen = Seen()
        while not seen.end:
            self._step(seen, limit_s)
        while any(select.select([fd], [], [], 0)[0] for fd in self._pipes):
            self._step(seen, limit_s)
        return seen

    def read_something(self, seen: Seen, limit_s: float = LIMIT_S) -> None:
        self._step(seen, limit_s)

    def close(self) -> int:
        """Hang up; the exit status."""
        self.socket.close()
        self._child.peer.close()
        for fd in self._pipes:
            os.close(fd)
        self._bench.loop.run_until(lambda: bool(self.status))
        return os.waitstatus_to_exitcode(self.status[0])

    def wait_death(self) -> int:
        """The exit status of a context that ends by itself; negative: the signal."""
        self._bench.loop.run_until(lambda: bool(self.status))
        self.close()
        return os.waitstatus_to_exitcode(self.status[0])

    def kill(self) -> None:
        self._child.group.kill()
        self.close()

    def read_streams(self, seen: Seen, limit_s: float = LIMIT_S) -> None:
        """What it wrote last, also when it has ended since."""
        while ready := select.select(list(self._pipes), [], [], limit_s)[0]:
            if not self._read(ready[0], seen):
                break

    def _step(self, seen: Seen, limit_s: float) -> None:
        ready = select.select([self.socket, *self._pipes], [], [], limit_s)[0]
        if not ready:
            raise Silent(f"nothing happened; so far: {str(seen)[:2000]}")
        if self.socket in ready:
            message = self._message()
            assert message.get("id") == self._serial, message
            if message["event"] == "result":
                assert not seen.end, "a result after the end"
                seen.order.append(("result", message["result"]))
            else:
                assert message["event"] == "end"
                seen.end, seen.count, seen.message = message["end"], message["count"], message
            return
        assert self._read(ready[0], seen), f"{self._pipes[ready[0]]} hung up"

    def _read(self, fd: int, seen: Seen) -> bool:
        name, data = self._pipes[fd], os.read(fd, self.chunk)
        if not data:
            return False
        if seen.order and seen.order[-1][0] == name:
            data = seen.order.pop()[1] + data
        seen.order.append((name, data))
        return True

    def _message(self) -> dict[str, Any]:
        assert select.select([self.socket], [], [], LIMIT_S)[0], "no message"
        data, rights, flags, _ = self.socket.recvmsg(_PACKET, socket.CMSG_SPACE(4) + socket.CMSG_SPACE(12))
        assert data, "the context hung up"
        assert not flags & socket.MSG_TRUNC
        message: dict[str, Any] = json.loads(data)
        files = array.array("i")
        for _, kind, payload in rights:
            if kind == socket.SCM_RIGHTS:
                files.frombytes(payload)
        if message["event"] == "result":
            body = message.get("body")
            if body is None:
                with open(files[0], "rb") as file:
                    body = file.read()
                assert len(body) == message["size"]
            message["result"] = json.loads(body)
        return message

    def _ignores_interrupts(self) -> bool:
        with open(f"/proc/{self.pid}/status") as status:
            mask = next(line.split()[1] for line in status if line.startswith("SigIgn:"))
        return bool(int(mask, 16) >> (signal.SIGINT - 1) & 1)


def _memory(data: bytes) -> int:
    fd = os.memfd_create("order")
    with open(fd, "wb", closefd=False) as file:
        file.write(data)
    os.lseek(fd, 0, os.SEEK_SET)
    return fd
