"""The daemon's end of the launcher: spawn, kill, learn of the end. No privilege on this side."""

from __future__ import annotations

import asyncio
import json
import os
import secrets
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import anyio
import anyio.from_thread

from casemate import errors
from casemate.config import Settings
from casemate.host.account import Account
from casemate.host.cgroup import group_of_home
from casemate.host.jail import Jail
from casemate.host.jailer import BINARY, Jailer
from casemate.host.launcher import MAX_DESCRIPTORS, MAX_MESSAGE_BYTES
from casemate.host.mapping import ProcessMemory

SPAWN_TIMEOUT_S = 20.0
KILL_TIMEOUT_S = 10.0
BOOTSTRAP_TIMEOUT_S = 1800.0
ATTEST_TIMEOUT_S = 10.0
SWEEP_TIMEOUT_S = 20.0
END_TIMEOUT_S = 10.0
SAID_BYTES = 16_384
MAX_WORDS = 300
SUBJECTS = (  # whom a message is about
    *("spawned", "failed", "exited", "attested", "unattested", "mapped", "unmapped", "swept"),
)


class NamedRecipe(Protocol):
    @property
    def name(self) -> str: ...


@dataclass(eq=False)
class Spawned:
    """A VMM the launcher has started. *pid* is the VMM's own, *status* its exit as bubblewrap reports it."""

    key: str
    pid: int = 0
    uid: int | None = None
    status: int | None = None
    out_of_memory: bool = False  # the kernel killed something of it for its memory limit
    started: asyncio.Event = field(default_factory=asyncio.Event)
    exited: asyncio.Event = field(default_factory=asyncio.Event)
    asking: asyncio.Lock = field(default_factory=asyncio.Lock)  # answers carry its key and nothing more
    refusal: str | None = None
    hint: str = ""


@dataclass
class LauncherProcess:
    """The launcher as started, before there is an event loop."""

    process: subprocess.Popen[bytes]
    socket: socket.socket
    privileged: bool  # it is root, whatever we become


def start_launcher(settings: Settings) -> LauncherProcess:
    """Start the process that keeps this one's privilege. Call it before dropping any. Raises HostError."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with theirs:
        argv = [sys.executable, "-I", "-m", "casemate.host.launcher"]
        argv += [str(theirs.fileno()), str(settings.uid_base), str(settings.uid_count), group_of_home(settings.home)]
        argv += ["weak" if settings.allow_weak_jail or os.geteuid() != 0 else "strict"]
        try:
            process = subprocess.Popen(
                argv, pass_fds=(theirs.fileno(),), stdin=subprocess.DEVNULL, start_new_session=True
            )
        except OSError as error:
            raise errors.HostError(f"the launcher cannot be started: {error}") from error
    ours.setblocking(False)
    return LauncherProcess(process, ours, privileged=os.geteuid() == 0)


class Launcher:
    """Made by ``open_launcher``. Safe for many tasks at once."""

    def __init__(self, process: LauncherProcess) -> None:
        self._process = process
        self._spawned: dict[str, Spawned] = {}
        self._asked: dict[str, asyncio.Future[dict[str, Any]]] = {}
        self._gone = asyncio.Event()

    @property
    def privileged(self) -> bool:
        """It is root: each VMM has a uid of its own, and Firecracker its jailer."""
        return self._process.privileged

    async def wait_gone(self) -> None:
        """Return when the launcher has ended: then nothing can be started or killed any more."""
        await self._gone.wait()

    @asynccontextmanager
    async def spawn(
        self, jail: Jail | Jailer, command: Sequence[str], descriptors: Sequence[int], said: int | None = None
    ) -> AsyncIterator[Spawned]:
        """*command* running in *jail* with *descriptors* as its 2, 3, 4, …; killed and gone when the block ends.

        A Jailer's *command* is the arguments of the VMM. *said*: where its first descriptor can be read (non-blocking).
        Raises ToolFailed when it did not start, with what it said; LeakedResource when it could not be killed.
        """
        from casemate.host.ownership import own

        child = Spawned(secrets.token_hex(8))
        self._spawned[child.key] = child
        body = {"do": "spawn", "id": child.key, "jail": jail.to_json(), "command": list(command)}
        self._send(body, descriptors)
        async with own(f"process {child.key}", lambda: self._kill(child), limit_s=KILL_TIMEOUT_S):
            what = BINARY if isinstance(jail, Jailer) else command[0]
            await self._wait_started(child, what, command, said)
            yield child

    async def _wait_started(self, child: Spawned, what: str, argv: Sequence[str], said: int | None) -> None:
        try:
            with anyio.fail_after(SPAWN_TIMEOUT_S):
                await child.started.wait()
        except TimeoutError as error:
            raise errors.ToolFailed(f"{what} did not start within {SPAWN_TIMEOUT_S:g} s") from error
        if child.pid == 0:
            words = "" if said is None else _read_said(said)
            why = child.refusal or f"exit status {child.status}"
            if child.refusal is None and words:
                why += f": {' '.join(words.split())[:MAX_WORDS]}"
            raise errors.ToolFailed(
                f"{what} did not start: {why}",
                hint=child.hint or "casemate doctor says what this host lacks",
                evidence={"argv": list(argv), "status": child.status, "stderr": words},
            )

    async def _kill(self, child: Spawned) -> None:
        if not child.exited.is_set() and not self._gone.is_set():
            self._send({"do": "signal", "id": child.key, "signal": "KILL"}, ())
            await child.exited.wait()
        self._spawned.pop(child.key, None)

    async def attest(self, child: Spawned, memory: int) -> Account:
        """The kernel's account of *child*, and how much it has mapped of the file behind the descriptor *memory*.

        Raises HostError when the kernel gives none; VmmExited when it has ended.
        """
        body = {"do": "attest", "id": child.key}
        async with child.asking:
            found = await self._ask(child.key, body, (memory,), ATTEST_TIMEOUT_S)
        if "account" not in found:
            kind = errors.VmmExited if child.exited.is_set() else errors.HostError
            raise kind(f"the kernel gives no account of process {child.pid}: {found.get('why', 'the launcher ended')}")
        return Account.from_json(found["account"])

    async def memory(self, child: Spawned, memory: int) -> ProcessMemory:
        """*child*'s own copy of the file behind the descriptor *memory*, to be read and written; close it.

        Raises HostError when it has none, or the kernel does not let us; VmmExited when it has ended.
        """
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
        with ours:
            with theirs:
                async with child.asking:
                    body = {"do": "memory", "id": child.key}
                    found = await self._ask(child.key, body, (memory, theirs.fileno()), ATTEST_TIMEOUT_S)
            if "mapped" not in found:
                kind = errors.VmmExited if child.exited.is_set() else errors.HostError
                why = found.get("why", "the launcher ended")
                raise kind(
                    f"the memory of process {child.pid} cannot be had: {why}",
                    hint="casemate doctor says what this host lacks",
                )
            _, (mem, pagemap), _, _ = socket.recv_fds(ours, 1, 2, socket.MSG_DONTWAIT)
        return ProcessMemory(mem, pagemap, found["start"], found["bytes"])

    def freeze(self, child: Spawned) -> None:
        """Have the kernel stop all of *child*, as if there were no processor for it. Raises HostError."""
        self._send({"do": "signal", "id": child.key, "signal": "STOP"}, ())

    def thaw(self, child: Spawned) -> None:
        self._send({"do": "signal", "id": child.key, "signal": "CONT"}, ())

    async def sweep(self) -> list[str]:
        """End what an earlier daemon of this home left in control groups; the names of those that are gone now.

        Only for who holds the home's lock: another daemon's machines would be leftovers, too. Raises HostError.
        """
        swept: list[str] = []
        while True:
            key = secrets.token_hex(8)
            found = await self._ask(key, {"do": "sweep", "id": key}, (), SWEEP_TIMEOUT_S)
            if "removed" not in found:
                raise errors.HostError(f"control groups cannot be swept: {found.get('why', 'the launcher ended')}")
            if not found["removed"]:
                return swept
            swept += found["removed"]

    async def _ask(
        self, key: str, body: dict[str, Any], descriptors: Sequence[int], timeout_s: float
    ) -> dict[str, Any]:
        """What is told about *key*; an empty answer when the launcher ends first. Raises HostError."""
        answer: asyncio.Future[dict[str, Any]] = asyncio.get_running_loop().create_future()
        self._asked[key] = answer
        try:
            self._send(body, descriptors)
            if self._gone.is_set():
                return {}
            with anyio.fail_after(timeout_s):
                return await answer
        except TimeoutError as error:
            raise errors.HostError(f"the launcher did not answer {body['do']!r} within {timeout_s:g} s") from error
        finally:
            del self._asked[key]

    def bootstrap(self, recipe: NamedRecipe, out: Path, on_line: Callable[[str], None]) -> None:
        """Have mmdebstrap write the root disk of a built-in recipe to the new file *out*. For worker threads.

        *on_line* gets each line it says, in the event loop.
        Raises ToolFailed (evidence: its last lines).
        """
        anyio.from_thread.run(self._bootstrap, recipe.name, out, on_line)

    async def _bootstrap(self, name: str, out: Path, on_line: Callable[[str], None]) -> None:
        child = Spawned(secrets.token_hex(8))
        lines: list[str] = []
        log_read, log_write = os.pipe2(os.O_CLOEXEC)
        with open(out, "xb") as disk, open(log_read, "rb") as log:
            self._spawned[child.key] = child
            try:
                self._send({"do": "bootstrap", "id": child.key, "recipe": name}, (disk.fileno(), log_write))
            finally:
                os.close(log_write)
            try:
                with anyio.fail_after(BOOTSTRAP_TIMEOUT_S):
                    async for line in _lines(log):
                        lines = [*lines[-200:], line]
                        on_line(line)
                    await child.exited.wait()
            except TimeoutError as error:
                raise errors.ToolFailed(
                    f"mmdebstrap took over {BOOTSTRAP_TIMEOUT_S:g} s",
                    hint="see that the registry is reachable",
                ) from error
            finally:
                with anyio.CancelScope(shield=True), anyio.move_on_after(KILL_TIMEOUT_S):
                    await self._kill(child)
        if child.status != 0 or child.refusal:
            raise errors.ToolFailed(
                f"mmdebstrap could not make the root disk of {name!r}: {_why(lines) or child.refusal or child.status}",
                hint="see that Debian's packages can be reached (apt-get update) and the disk is not full",
                evidence={"status": child.status, "last_lines": lines[-30:]},
            )

    def _send(self, body: dict[str, Any], descriptors: Sequence[int]) -> None:
        message = json.dumps(body).encode()
        if len(message) > MAX_MESSAGE_BYTES or len(descriptors) > MAX_DESCRIPTORS:
            raise errors.HostError("a message to the launcher is too long")
        try:
            socket.send_fds(self._process.socket, [message], list(descriptors))
        except OSError as error:  # its queue holds hundreds of messages; a full one is a launcher that hangs
            raise errors.HostError(f"the launcher does not answer: {error}", hint="restart the daemon") from error

    async def listen(self) -> None:
        """Take in what the launcher tells, until it ends."""
        loop = asyncio.get_running_loop()
        while message := await loop.sock_recv(self._process.socket, MAX_MESSAGE_BYTES):
            self._told(json.loads(message))
        self._on_gone()

    def _told(self, body: dict[str, Any]) -> None:
        key = next(body[word] for word in SUBJECTS if word in body)
        if (asked := self._asked.get(key)) is not None and not {"spawned", "exited"} & body.keys():
            if not asked.done():
                asked.set_result(body)
        elif (child := self._spawned.get(key)) is None:
            return  # nobody waits for it any more
        elif "spawned" in body:
            child.pid, child.uid = body["pid"], body["uid"]
            child.started.set()
        elif "failed" in body:
            child.refusal, child.hint, child.status = body["why"], body["hint"], -1
            child.started.set()
            child.exited.set()
        elif "exited" in body:
            child.status, child.out_of_memory = body["status"], body["out_of_memory"]
            child.started.set()
            child.exited.set()

    def _on_gone(self) -> None:
        self._gone.set()
        for asked in self._asked.values():
            if not asked.done():
                asked.set_result({})
        for child in self._spawned.values():  # the kernel killed them with the launcher
            child.started.set()
            child.exited.set()


@asynccontextmanager
async def open_launcher(process: LauncherProcess) -> AsyncIterator[Launcher]:
    """The launcher, listened to; at the end its socket is closed and it is waited for."""
    launcher = Launcher(process)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(launcher.listen)
        try:
            yield launcher
        finally:
            tasks.cancel_scope.cancel()
            process.socket.close()
            with anyio.CancelScope(shield=True):
                await anyio.to_thread.run_sync(_wait_process, process.process)


def _wait_process(process: subprocess.Popen[bytes]) -> None:
    try:
        process.wait(END_TIMEOUT_S)
    except subprocess.TimeoutExpired as error:
        raise errors.LeakedResource(f"the launcher (pid {process.pid}) did not end") from error


def _read_said(descriptor: int) -> str:
    try:
        return os.read(descriptor, SAID_BYTES).decode(errors="replace").strip()
    except BlockingIOError:
        return ""


async def _lines(log: Any) -> AsyncIterator[str]:
    while line := await anyio.to_thread.run_sync(log.readline, 4096, abandon_on_cancel=True):
        yield line.decode(errors="replace").rstrip()


def _why(lines: Sequence[str]) -> str:
    return next((line[3:] for line in reversed(lines) if line.startswith(("E: ", "W: "))), "")
