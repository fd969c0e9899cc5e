"""The floor of ``casemate bench``: the same acts by hand, with nothing of Casemate.

``python3 bench/floor.py CLONE.json`` where CLONE.json is the ``clone`` of ``casemate image inspect --json``. It reads
the name of an act per line from stdin and answers each with a line of JSON, ``{"ms": …}`` or ``{"error": …}``.
It starts QEMU in the same jail from the same files, speaks QMP and the wire's frames over bare sockets, and
waits for nothing it does not need. Only the uid differs, that of whoever starts this, and there is no control group.
"""

from __future__ import annotations

import base64
import fcntl
import json
import os
import secrets
import select
import shutil
import signal
import socket
import struct
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

HEADER = struct.Struct(">IIBBH")
SYNC, OPEN, ACCEPT, DENY, DATA, CREDIT, FIN, RESET, PING, PONG, HELLO, READY = range(1, 13)
MAGIC = b"\xcaCASEMATE-SYNC-1"
WINDOW, PIECE = 262_144, 65_536
DEADLINE_S = 60.0
FILE_BYTES = 16 << 20
CROWDS = ("burst", "fork")  # before the number of guests
LOW_DESCRIPTORS = 64  # ours lie above, so that none is in the way of the numbers a VMM is given


class Guest:
    """One clone: a jailed VMM, its monitor, its stream."""

    def __init__(self, clone: dict[str, Any], folder: Path) -> None:
        self.folder = Path(tempfile.mkdtemp(dir=folder))
        self._until = time.monotonic() + DEADLINE_S
        disk = self.folder / "disk"
        copy_sparse(clone["disk"], disk)
        self.stream, theirs = socket.socketpair()
        self.monitor, their_monitor = socket.socketpair()
        info, their_info = os.pipe()
        sockets = {"stream": theirs.fileno(), "monitor": their_monitor.fileno()}
        opened = []
        places = []
        for wanted in clone["descriptors"]:
            if wanted["what"] in sockets:
                places.append((sockets[wanted["what"]], wanted["number"]))
                continue
            path = disk if wanted["path"] == "/disk" else wanted["path"]
            opened.append(os.open(path, os.O_RDWR if wanted["writable"] else os.O_RDONLY))
            places.append((opened[-1], wanted["number"]))
        places.append((their_info, clone["jail"]["info_descriptor"]))
        if (number := clone["jail"]["filter_descriptor"]) is not None:
            opened.append(os.memfd_create("filter"))
            os.write(opened[-1], base64.b64decode(clone["jail"]["compiled_filter"]))
            os.lseek(opened[-1], 0, os.SEEK_SET)
            places.append((opened[-1], number))
        high = [(fcntl.fcntl(source, fcntl.F_DUPFD_CLOEXEC, LOW_DESCRIPTORS), target) for source, target in places]
        null = os.open(os.devnull, os.O_RDWR)
        actions = [(os.POSIX_SPAWN_DUP2, null, number) for number in range(3)]
        actions += [(os.POSIX_SPAWN_DUP2, source, target) for source, target in high]
        self.pid = os.posix_spawnp("bwrap", clone["argv"], dict(os.environ), file_actions=actions)
        theirs.close()
        their_monitor.close()
        for descriptor in [null, their_info, *opened, *(source for source, _ in high)]:
            os.close(descriptor)
        self._info = info
        self._said = b""
        self._data = bytearray()
        self._credit: dict[int, int] = {}
        self._next = 1

    # ------------------------------------------------------------- the monitor

    def load(self, steps: list[dict[str, Any]]) -> None:
        """Greet, load the state and let the vCPUs run."""
        self._line()
        self._execute({"execute": "qmp_capabilities"})
        for step in steps:
            if step.get("wait") == "completed":
                while (found := self._execute({"execute": "query-migrate"}))["status"] != "completed":
                    if found["status"] == "failed":
                        raise RuntimeError(str(found))
                    time.sleep(0.0005)
            else:
                self._execute(step)

    def _execute(self, command: dict[str, Any]) -> Any:
        self.monitor.sendall(json.dumps(command).encode())
        while True:
            answer = json.loads(self._line())
            if "return" in answer:
                return answer["return"]
            if "error" in answer:
                raise RuntimeError(str(answer))

    def _line(self) -> bytes:
        while b"\n" not in self._said:
            self._said += self._receive(self.monitor)
        line, _, self._said = self._said.partition(b"\n")
        return line

    # -------------------------------------------------------------- the stream

    def introduce(self, *, copy: bool = False) -> None:
        """SYNC and HELLO; back with READY. The answer's proof is not checked here.

        *copy*: of a sandbox that had run; its user's processes are frozen until ``thaw``.
        """
        body = {
            "generation": 1,
            "sandbox_id": secrets.token_hex(13),
            "hostname": "floor",
            "machine_id": secrets.token_hex(16),
            "entropy": base64.b64encode(secrets.token_bytes(64)).decode(),
            "nonce": secrets.token_hex(16),
            "wall_clock_ns": time.time_ns(),
            "env": {},
            "user": None,
            "cwd": None,
            "fresh": True,
            "copy": copy,
        }
        self._send(SYNC, 0, MAGIC + secrets.token_bytes(16))
        self._send(HELLO, 0, json.dumps(body).encode())
        self._await(lambda kind, *_: kind == READY)

    def ping(self) -> None:
        token = secrets.token_bytes(8)
        self._send(PING, 0, token)
        self._await(lambda kind, _channel, _sub, payload: kind == PONG and payload == token)

    def thaw(self) -> None:
        number = self._open("control", {"op": "thaw"})
        self._await(lambda kind, channel, *_: (kind, channel) == (FIN, number))
        self._send(RESET, number, b'{"code": "closed", "hint": ""}')

    def execute(self, *argv: str) -> None:
        """A program from its start to its end."""
        self.finish(self.begin(*argv))

    def begin(self, *argv: str) -> int:
        params = {"op": "start", "exec_id": secrets.token_hex(13), "argv": list(argv), "env": {}, "cwd": None}
        params |= {"user": None, "timeout_s": None, "stdin": False, "on_disconnect": "kill", "cold": False}
        return self._open("exec", params | {"script": None})

    def finish(self, number: int) -> None:
        self._await_message(number)

    def cell(self, code: str) -> None:
        number = self._open("cell", {"op": "run", "cell_id": secrets.token_hex(13), "context": "default"})
        self._send(DATA, number, code.encode(), 1)
        self._send(FIN, number)
        self._await_message(number, "end")

    def put(self, path: str, data: bytes) -> None:
        params = {"op": "write", "path": path, "mode": None, "user": None, "make_parents": True}
        number = self._open("file", params)
        for begin in range(0, len(data), PIECE):
            piece = data[begin : begin + PIECE]
            while self._credit[number] < len(piece):
                self._await(lambda kind, channel, *_: (kind, channel) == (CREDIT, number))
            self._credit[number] -= len(piece)
            self._send(DATA, number, piece, 1)
        self._send(FIN, number)
        self._await_message(number)

    def get(self, path: str) -> int:
        """The number of bytes that came."""
        number = self._open("file", {"op": "read", "path": path, "user": None, "offset": 0, "length": None})
        self._send(FIN, number)
        count = owed = 0

        def take(kind: int, channel: int, _sub: int, payload: bytes) -> bool:
            nonlocal count, owed
            if channel == number and kind == DATA:
                count += len(payload)
                owed += len(payload)
                if owed >= WINDOW // 4:
                    self._send(CREDIT, number, owed.to_bytes(4, "big"))
                    owed = 0
            return channel == number and kind == FIN

        self._await(take)
        return count

    def _open(self, kind: str, params: dict[str, Any]) -> int:
        number, self._next = self._next, self._next + 2
        self._credit[number] = WINDOW
        self._send(OPEN, number, json.dumps(params | {"kind": kind}).encode())
        return number

    def _await_message(self, number: int, event: str | None = None) -> None:
        """A message on the channel, the next one or that of *event*; the channel is closed then."""

        def is_it(kind: int, channel: int, sub: int, payload: bytes) -> bool:
            return (kind, channel, sub) == (DATA, number, 0) and event in (None, json.loads(payload)["event"])

        self._await(is_it)
        self._send(RESET, number, b'{"code": "closed", "hint": ""}')

    def _send(self, kind: int, channel: int, payload: bytes = b"", sub: int = 0) -> None:
        self.stream.sendall(HEADER.pack(len(payload), channel, kind, sub, 0) + payload)

    def _await(self, wanted: Callable[[int, int, int, bytes], bool]) -> None:
        while True:
            while len(self._data) >= HEADER.size:
                length, channel, kind, sub, _ = HEADER.unpack_from(self._data)
                if len(self._data) < HEADER.size + length:
                    break
                payload = bytes(self._data[HEADER.size : HEADER.size + length])
                del self._data[: HEADER.size + length]
                if kind == CREDIT and channel in self._credit:
                    self._credit[channel] += int.from_bytes(payload, "big")
                if kind in (DENY, RESET):
                    raise RuntimeError(f"the guest refused: {payload!r}")
                if wanted(kind, channel, sub, payload):
                    return
            self._data += self._receive(self.stream)

    def _receive(self, sock: socket.socket) -> bytes:
        if not select.select([sock], [], [], max(0.0, self._until - time.monotonic()))[0]:
            raise TimeoutError(f"no answer within {DEADLINE_S:g} s")
        if not (data := sock.recv(262_144)):
            raise RuntimeError("the VMM ended")
        return data

    def extend(self) -> None:
        """Give the next act the whole deadline."""
        self._until = time.monotonic() + DEADLINE_S

    def close(self) -> None:
        os.kill(self.pid, signal.SIGKILL)  # our own child, not waited for yet: the number is its
        os.waitpid(self.pid, 0)
        os.close(self._info)
        try:
            while select.select([self.stream], [], [], DEADLINE_S)[0] and self.stream.recv(WINDOW):
                pass  # it reads as ended when the VMM, which dies with its jail, is gone
        except ConnectionResetError:
            pass  # so it does when the VMM had not read our last word
        self.stream.close()
        self.monitor.close()
        shutil.rmtree(self.folder)


def copy_sparse(source: str, target: Path) -> None:
    with open(source, "rb") as origin, open(target, "xb") as copy:
        size, offset = os.fstat(origin.fileno()).st_size, 0
        os.ftruncate(copy.fileno(), size)
        while offset < size:
            try:
                offset = os.lseek(origin.fileno(), offset, os.SEEK_DATA)
            except OSError:  # only a hole is left
                return
            end = os.lseek(origin.fileno(), offset, os.SEEK_HOLE)
            while offset < end:
                offset += os.copy_file_range(origin.fileno(), copy.fileno(), end - offset, offset, offset)


class Floor:
    """The acts by name. A guest that has run something stays for the acts that want a warm one."""

    def __init__(self, clone: dict[str, Any], folder: Path) -> None:
        self._clone, self._folder = clone, folder
        self._data = os.urandom(FILE_BYTES)
        self._warm: Guest | None = None

    def act(self, name: str) -> float:
        """Milliseconds that the act *name* took."""
        if name in ("create_to_first_answer", "first_after_boot"):
            return self._timed(lambda: self._new().close)
        if name == "create_to_first_exec":
            return self._timed(self._new_and_exec)
        crowd, _, count = name.partition("_")
        if crowd in CROWDS:
            return (self._burst if crowd == "burst" else self._copies)(int(count))
        if name == "snapshot":
            return self._copy_files()
        guest = self._warm_guest()
        guest.extend()
        began = time.perf_counter()
        if name == "exec_roundtrip":
            guest.execute("/bin/true")
        elif name == "run_code_1plus1":
            guest.cell("1 + 1")
        elif name == "put_16mib":
            guest.put("put.bin", self._data)
        elif name == "get_16mib":
            if guest.get("got.bin") != FILE_BYTES:
                raise RuntimeError("not the whole file came")
        else:
            raise RuntimeError(f"there is no act {name!r}")
        return (time.perf_counter() - began) * 1000

    def close(self) -> None:
        if self._warm is not None:
            self._warm.close()

    def _timed(self, act: Callable[[], Callable[[], None]]) -> float:
        began = time.perf_counter()
        undo = act()
        taken = (time.perf_counter() - began) * 1000
        undo()
        return taken

    def _start(self) -> Guest:
        return Guest(self._clone, self._folder)

    def _new(self) -> Guest:
        guest = self._start()
        try:
            self._awake(guest)
        except BaseException:
            guest.close()
            raise
        return guest

    def _awake(self, guest: Guest) -> None:
        guest.load(self._clone["monitor"])
        guest.introduce()
        guest.ping()

    def _new_and_exec(self) -> Callable[[], None]:
        guest = self._new()
        guest.execute("/bin/true")
        return guest.close

    def _burst(self, count: int) -> float:
        """All started at once, then taken through their steps one after the other while the rest run on."""
        guests: list[Guest] = []
        began = time.perf_counter()
        try:
            guests += [self._start() for _ in range(count)]
            for guest in guests:
                guest.load(self._clone["monitor"])
            for guest in guests:
                guest.introduce()
            for guest in guests:
                guest.ping()
            return (time.perf_counter() - began) * 1000
        finally:
            for guest in guests:
                guest.close()

    def _copies(self, count: int) -> float:
        """As a burst, of what was saved of a sandbox that had run; until each has run a program."""
        guests: list[Guest] = []
        began = time.perf_counter()
        try:
            guests += [self._start() for _ in range(count)]
            for guest in guests:
                guest.load(self._clone["monitor"])
            for guest in guests:
                guest.introduce(copy=True)
            for guest in guests:
                guest.thaw()
            begun = [guest.begin("/bin/true") for guest in guests]
            for guest, number in zip(guests, begun, strict=True):
                guest.finish(number)
            return (time.perf_counter() - began) * 1000
        finally:
            for guest in guests:
                guest.close()

    def _copy_files(self) -> float:
        """Memory and disk, to the disk."""
        memory = next(wanted["path"] for wanted in self._clone["descriptors"] if wanted["what"] == "memory")
        with tempfile.TemporaryDirectory(dir=self._folder) as folder:
            began = time.perf_counter()
            for number, source in enumerate((memory, self._clone["disk"])):
                copy_sparse(source, copy := Path(folder) / str(number))
                descriptor = os.open(copy, os.O_RDONLY)
                os.fsync(descriptor)
                os.close(descriptor)
            return (time.perf_counter() - began) * 1000

    def _warm_guest(self) -> Guest:
        if self._warm is None:
            self._warm = self._new()
            self._warm.execute("/bin/true")
            self._warm.put("got.bin", self._data)
            self._warm.cell("1 + 1")
        return self._warm


def main() -> None:
    clone = json.loads(Path(sys.argv[1]).read_text())
    if os.geteuid() == 0:  # bubblewrap gives root's rights up first: then only the home's group opens its folders
        os.setgroups([os.stat(clone["disk"]).st_gid])
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # who started us closes stdin when it is interrupted
    with tempfile.TemporaryDirectory(prefix="casemate-floor-") as folder:
        floor = Floor(clone, Path(folder))
        try:
            for line in sys.stdin:
                try:
                    answer: dict[str, Any] = {"ms": floor.act(line.strip())}
                except (OSError, RuntimeError, ValueError) as error:
                    answer = {"error": f"{type(error).__name__}: {error}"}
                print(json.dumps(answer), flush=True)
        finally:
            floor.close()


if __name__ == "__main__":
    main()
