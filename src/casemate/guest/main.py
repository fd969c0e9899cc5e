"""The agent's composition: what PID 1 does from its first instruction on, in order."""

from __future__ import annotations

import gc
import os
import resource
import signal
import sys
import time
from typing import TYPE_CHECKING, NoReturn

from casemate.guest.marked import Marked

if TYPE_CHECKING:
    from casemate.guest import transport, vsock
    from casemate.guest.reactor import Reactor
    from casemate.guest.server import Server

STREAM_LIMIT_S = 10.0
OPEN_FILES = 65_536
MCL_CURRENT, MCL_FUTURE, MCL_ONFAULT = 1, 2, 4  # Source: asm-generic/mman.h


def main() -> NoReturn:
    """Be PID 1. When this ends the kernel panics, and with it the machine: nothing runs unattended."""
    try:
        _protect()
        _serve()
    except BaseException:
        import traceback

        traceback.print_exc(file=sys.stderr)
        sys.stderr.flush()
        raise
    raise SystemExit("the agent's loop ended")


def _protect() -> None:
    sys.stderr = Marked(sys.stderr)
    os.umask(0o022)
    os.chdir("/")
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # to PID 1 that means: ignored, and children inherit the default
    resource.setrlimit(resource.RLIMIT_NOFILE, (OPEN_FILES, OPEN_FILES))
    with open("/proc/self/oom_score_adj", "w") as file:
        file.write("-1000")
    _keep_in_memory()


def _keep_in_memory() -> None:
    """Programs that use up the guest's memory must not push out what it takes to end them."""
    import ctypes

    if ctypes.CDLL(None, use_errno=True).mlockall(MCL_CURRENT | MCL_FUTURE | MCL_ONFAULT) != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), "mlockall")


def _serve() -> None:
    from casemate import __version__
    from casemate.guest import mounts
    from casemate.guest.cgroups import Groups
    from casemate.guest.exec_table import ExecTable
    from casemate.guest.handshake import Handshake, Machine
    from casemate.guest.reactor import Reactor
    from casemate.guest.reaper import Reaper
    from casemate.guest.server import Server
    from casemate.guest.spawner import Spawner
    from casemate.guest.surroundings import Surroundings
    from casemate.guest.warmth import Warmth

    mounts.mount_all()
    reactor = Reactor()
    reaper = Reaper(reactor)
    groups = Groups(reactor)
    groups.limit()
    spawner = Spawner(reactor, reaper, groups)
    spawner.start()
    execs = ExecTable(reactor, spawner)
    surroundings = Surroundings()
    server = Server(
        reactor,
        groups,
        execs,
        surroundings,
        Handshake(Machine(), __version__),
        Warmth(reactor, reaper, groups, execs, spawner, surroundings),
    )
    stream = _open_stream(reactor, server)
    reactor.after_turn = lambda: stream.send(server.connection.outgoing)
    gc.collect()
    gc.freeze()
    gc.set_threshold(20_000, 50, 50)
    reactor.run()


def _open_stream(reactor: Reactor, server: Server) -> transport.Transport | vsock.Listener:
    """A port appears when the driver has heard of its name from the VMM."""
    from casemate.guest import transport, vsock

    until = time.monotonic() + STREAM_LIMIT_S
    while time.monotonic() < until:
        if (path := transport.find_port()) is not None and os.path.exists(path):
            return transport.Transport(reactor, transport.open_port(path), server.receive, server.lose)
        if vsock.is_there():
            return vsock.Listener(reactor, vsock.listen(), server.receive, server.lose)
        time.sleep(0.01)
    raise TimeoutError("this machine has neither a virtio-serial port named agent nor a vsock")
