"""Start the user's own daemon when there is none: in a session of its own, waiting for its one line. And stop it.

Writes ``run/daemon.log`` (what the daemon says on stderr); the last start's is kept as ``daemon.log.1``
once it has grown. The loser of a race between two starters waits for the winner's daemon.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import socket
import struct
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from casemate.errors import DaemonRunning, DaemonUnavailable, HostError, Retry, ToolMissing, from_json
from casemate.sdk.target import Connectable, Target

START_TIMEOUT_S = 30.0
STOP_TIMEOUT_S = 65.0  # a daemon drains within 60 s
BUSY_S = 10.0  # how long its queue of connections may be full
WINNER_S = 1.0  # how long the holder of the lock may take to listen, before it is taken for one that is ending
COMMAND = (sys.executable, "-m", "casemate.daemon", "--on-demand")
MAX_LOG_BYTES = 2**20
MAX_LINE_BYTES = 2**20
_UCRED = struct.Struct("iii")  # pid, uid, gid. Source: unix(7)


def ensure_daemon(target: Target) -> None:
    """Return when somebody listens on *target*'s socket; on a home's own, by starting a daemon if need be.

    Raises DaemonUnavailable, and what start_daemon raises.
    """
    assert target.socket is not None
    if answers(target.socket):
        return
    if target.home is None:
        raise DaemonUnavailable(
            f"no daemon answers at {target}", hint="start one with: casemate serve", retry=Retry.SAFE
        )
    start_daemon(target.home)


def start_daemon(home: Path, *, timeout_s: float = START_TIMEOUT_S, command: Sequence[str] = COMMAND) -> None:
    """Return when a daemon answers on *home*'s socket, started by us (*command*) or by somebody else.

    Raises what kept the daemon from starting (HostError, InvalidSpec), DaemonUnavailable after *timeout_s*.
    """
    deadline = time.monotonic() + timeout_s
    path = home / "run/daemon.sock"
    while True:
        if answers(path):
            return
        try:
            _start_once(home, command, deadline)
        except DaemonRunning:
            _wait_answers(path, min(deadline, time.monotonic() + WINNER_S))
        if time.monotonic() >= deadline:
            raise DaemonUnavailable(
                f"no daemon answered on {path} within {timeout_s:g} s",
                hint=f"see {home / 'run/daemon.log'}",
                evidence={"log": _tail(home / "run/daemon.log")},
            )


def stop_daemon(target: Target, *, timeout_s: float = STOP_TIMEOUT_S) -> int | None:
    """Have the daemon at *target* drain and end, and return when it has: its pid; None when nobody listens.

    Raises DaemonUnavailable when it has not ended after *timeout_s*, or is not ours to end.
    """
    if target.socket is None:
        raise DaemonUnavailable(f"{target} is not on this machine", hint="stop it where it runs", retry=Retry.SAFE)
    pid = find_listener(target.socket)
    if pid is None:
        return None
    try:
        pidfd = os.pidfd_open(pid)
    except ProcessLookupError:
        return None
    try:
        if find_listener(target.socket) != pid:  # it has ended in between; the number may be somebody else's by now
            return None
        signal.pidfd_send_signal(pidfd, signal.SIGTERM)
        poller = select.poll()
        poller.register(pidfd, select.POLLIN)
        if not poller.poll(timeout_s * 1000):
            raise DaemonUnavailable(
                f"the daemon (pid {pid}) has not ended within {timeout_s:g} s",
                hint=f"end it for good with: kill -9 {pid}; the next start sweeps what it leaves",
            )
    except PermissionError as error:
        raise DaemonUnavailable(f"the daemon (pid {pid}) is not yours to end", hint="run as its user") from error
    except ProcessLookupError:
        return pid
    finally:
        os.close(pidfd)
    return pid


def answers(path: Path) -> bool:
    """Whether somebody listens there; the socket of a dead daemon refuses."""
    return find_listener(path) is not None


def find_listener(path: Path) -> int | None:
    """The pid of who listens there, on the kernel's word.

    Raises DaemonUnavailable where we may not ask, and for one that has a full queue for BUSY_S.
    """
    with _connectable(path) as name, socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.setblocking(False)
        try:
            _connect(probe, name)
        except BlockingIOError as error:
            raise DaemonUnavailable(
                f"the daemon at {path} takes no connection", hint="it is there, but very busy", retry=Retry.SAFE
            ) from error
        except PermissionError as error:
            raise DaemonUnavailable(
                f"{path} is not yours to use", hint="run as the user whose daemon it is, or set CASEMATE_HOME"
            ) from error
        except OSError:
            return None
        credentials = probe.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _UCRED.size)
        return int(_UCRED.unpack(credentials)[0])


def _connect(probe: socket.socket, name: str) -> None:
    """Raises OSError; BlockingIOError when there was no room in the queue for BUSY_S. Source: connect(2), EAGAIN"""
    deadline = time.monotonic() + BUSY_S
    while True:
        try:
            return probe.connect(name)
        except BlockingIOError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.01)


@contextlib.contextmanager
def _connectable(path: Path) -> Iterator[str]:
    connectable = Connectable(path)
    try:
        yield connectable.path
    finally:
        connectable.close()


def _start_once(home: Path, command: Sequence[str], deadline: float) -> None:
    read_end, write_end = os.pipe2(os.O_CLOEXEC)
    try:
        try:
            with _open_log(home) as log:
                _spawn(command, log.fileno(), write_end)
        finally:
            os.close(write_end)  # so that its death is an end of file here
        line = _read_line(read_end, home / "run/daemon.log", deadline)
    finally:
        os.close(read_end)
    if line is None:
        return
    if line.get("status") != "ready":
        raise from_json(line.get("error") or {"message": "the daemon did not start"})


def _spawn(command: Sequence[str], log: int, ready: int) -> None:
    import subprocess  # late: once per login, not once per use

    # setsid forks: the daemon is nobody's child but init's, and ours to neither reap nor take down
    argv = ["setsid", "--fork", *command, "--ready-fd", str(ready)]
    try:
        subprocess.run(
            argv, stdin=subprocess.DEVNULL, stdout=log, stderr=log, pass_fds=(ready,), cwd="/", check=True, timeout=10
        )
    except FileNotFoundError as error:
        raise ToolMissing("setsid is missing", hint="install util-linux") from error
    except subprocess.SubprocessError as error:
        raise HostError(f"the daemon could not be started: {error}") from error


@contextlib.contextmanager
def _open_log(home: Path) -> Iterator[Any]:
    path = home / "run/daemon.log"
    try:
        home.mkdir(mode=0o700, parents=True, exist_ok=True)
        path.parent.mkdir(mode=0o700, exist_ok=True)
        with contextlib.suppress(FileNotFoundError):
            if path.stat().st_size > MAX_LOG_BYTES:
                path.rename(path.with_name("daemon.log.1"))
        log = path.open("ab")
    except OSError as error:
        raise HostError(
            f"{path} cannot be written: {error.strerror}", hint="set CASEMATE_HOME to a folder you can write"
        ) from error
    with log:
        yield log


def _read_line(descriptor: int, log: Path, deadline: float) -> dict[str, Any] | None:
    """The daemon's one line, None when the deadline passed. Raises DaemonUnavailable when it died first."""
    held = b""
    poller = select.poll()
    poller.register(descriptor, select.POLLIN)
    while b"\n" not in held:
        left_s = deadline - time.monotonic()
        if left_s <= 0:
            return None
        if not poller.poll(left_s * 1000):
            continue
        piece = os.read(descriptor, 65536)
        if not piece or len(held) > MAX_LINE_BYTES:
            raise DaemonUnavailable(
                "the daemon ended before it was ready",
                hint=f"casemate serve shows why, and {log}",
                evidence={"log": _tail(log)},
            )
        held += piece
    line: dict[str, Any] = json.loads(held.split(b"\n", 1)[0])
    return line


def _wait_answers(path: Path, deadline: float) -> None:
    while not answers(path) and time.monotonic() < deadline:
        time.sleep(0.02)  # nothing tells us when another process starts to listen


def _tail(path: Path, size_bytes: int = 2000) -> str:
    try:
        with path.open("rb") as log:
            log.seek(max(0, path.stat().st_size - size_bytes))
            return log.read().decode(errors="replace")
    except OSError as error:
        return str(error)
