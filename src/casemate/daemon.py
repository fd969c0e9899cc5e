"""The composition root: one process that owns a home, and the only place that names a driver.

    launcher (keeps the privilege) ← socketpair → daemon (its own uid) ← unix socket → SDK and CLI

Started by the SDK on demand (``python -m casemate.daemon --idle-exit-s 600 --ready-fd N``) or by
``casemate serve``. On the descriptor it writes one line: ready, or the error that kept it from it.
"""

from __future__ import annotations

import argparse
import fcntl
import json
import os
import signal
import socket
import sys
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import anyio
import structlog
import uvicorn

import casemate
from casemate import audit, config, errors, storage
from casemate.api.native import app as native_app
from casemate.build import BuildHost, Images, open_images
from casemate.host import Launcher, drop_privilege, enter_view, give_home, open_launcher, start_launcher
from casemate.host.launching import LauncherProcess
from casemate.images import Identities, Workshop
from casemate.sandbox import Sandboxes, SandboxInfo, Shape, Supervisor, open_sandboxes
from casemate.sandbox.index import Index
from casemate.vmm.qemu import QemuDriver

log = structlog.get_logger()
IDLE_CHECK_S = 1.0
# A VMM's uid has the daemon's group, to reach what is bound into its jail; inside, there is nothing else to reach
HOME_MODES = {".": 0o710, "artifacts": 0o710, "snapshots": 0o710, "vmm": 0o710, "sandboxes": 0o700, "run": 0o700}


@contextmanager
def held_lock(settings: config.Settings) -> Iterator[None]:
    """One daemon per home. Raises StateConflict (daemon-running) when there is one."""
    settings.run.mkdir(parents=True, exist_ok=True)
    with (settings.run / "daemon.lock").open("a") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise errors.DaemonRunning(f"a daemon already runs on {settings.home}", hint="use it") from None
        yield


def host_id(home: Path) -> str:
    """This host's name for itself in persistent rows; made once per home. Blocks, briefly."""
    path = home / "host-id"
    try:
        return path.read_text().strip()
    except FileNotFoundError:
        path.write_text(os.urandom(16).hex() + "\n")
        return path.read_text().strip()


class Service:
    """What the API serves, opened together and closed together."""

    def __init__(self, settings: config.Settings, sandboxes: Sandboxes, images: Images, driver: QemuDriver) -> None:
        self.settings = settings
        self.sandboxes = sandboxes
        self.images = images
        self.driver = driver

    def health(self) -> dict[str, Any]:
        return {
            "status": "ok",
            "version": casemate.__version__,
            "pid": os.getpid(),
            "isolation": self.driver.isolation,
            "accelerator": self.driver.accelerator,
            "home": str(self.settings.home),
        }


@asynccontextmanager
async def open_service(settings: config.Settings, launcher: Launcher) -> AsyncIterator[Service]:
    """Everything from the database up to the sandboxes. Raises HostError."""
    database = storage.open(settings.home / "casemate.db")
    try:
        here = host_id(settings.home)
        shape = Shape(settings.vcpus, settings.memory_mib, settings.disk_mib)
        driver = QemuDriver(settings, launcher, accelerator="tcg")
        build_host = BuildHost(
            driver=driver,
            database=database,
            workshop=Workshop(settings.home),
            bootstrap=launcher.bootstrap,
            snapshots=settings.home / "snapshots",
            verified=Identities(settings.run / "verified"),
            host_id=here,
            default_shape=shape,
            boot_timeout_s=settings.boot_timeout_s,
            shape_budget_mib=settings.shape_budget_mib,
        )
        trail = audit.Trail(database, here)
        supervisor = Supervisor(
            driver=driver,
            index=Index(database, here),
            folders=settings.home / "sandboxes",
            agent_timeout_s=settings.agent_timeout_s,
            on_violation=partial(record_violation, trail),
        )
        async with (
            open_images(build_host) as images,
            open_sandboxes(supervisor, supervisor.index, images.snapshot_for, shape) as sandboxes,
        ):
            yield Service(settings, sandboxes, images, driver)
    finally:
        database.close()


async def record_violation(trail: audit.Trail, info: SandboxInfo, error: errors.CasemateError) -> None:
    await trail.record(
        "sandbox.protocol-violation", tenant=info.tenant, subject=info.id, detail={"message": error.message}
    )


async def serve(
    settings: config.Settings,
    process: LauncherProcess,
    idle_exit_s: float | None,
    ready: Report,
    found: Sequence[config.Found],
) -> None:
    """Answer requests until SIGTERM, SIGINT, the launcher's end or *idle_exit_s* without use."""
    async with open_launcher(process) as launcher, open_service(settings, launcher) as service:
        with bound(settings.socket) as listener:
            busy = Busy(native_app(service.sandboxes, service.images, service.health, found))
            server = uvicorn.Server(
                uvicorn.Config(
                    busy,
                    lifespan="off",
                    log_config=None,
                    access_log=False,
                    http="httptools",
                    timeout_graceful_shutdown=2,
                    backlog=1024,
                )
            )
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(stop_on_signal, server)
                tasks.start_soon(stop_when_gone, server, launcher)
                if idle_exit_s is not None:
                    tasks.start_soon(stop_when_idle, server, busy, service.sandboxes, idle_exit_s)
                ready.ready(settings.socket)
                await server.serve(sockets=[listener])
                tasks.cancel_scope.cancel()


class Busy:
    """The app, and how long it has had nothing to do."""

    def __init__(self, app: Any) -> None:
        self._app = app
        self._running = 0
        self._since = time.monotonic()

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        self._running += 1
        try:
            await self._app(scope, receive, send)
        finally:
            self._running -= 1
            self._since = time.monotonic()

    def idle_s(self) -> float:
        return 0.0 if self._running else time.monotonic() - self._since


async def stop_on_signal(server: uvicorn.Server) -> None:
    with anyio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:
        async for _ in signals:
            server.should_exit = True


async def stop_when_gone(server: uvicorn.Server, launcher: Launcher) -> None:
    await launcher.wait_gone()
    log.error("the launcher has ended; without it no machine can be started or stopped")
    server.should_exit = True


async def stop_when_idle(server: uvicorn.Server, busy: Busy, sandboxes: Sandboxes, idle_exit_s: float) -> None:
    while busy.idle_s() < idle_exit_s or sandboxes.count_live():
        await anyio.sleep(IDLE_CHECK_S)
    server.should_exit = True


@contextmanager
def bound(path: Path) -> Iterator[socket.socket]:
    """A listening socket at *path*, for its owner only; bound from its folder, as a path has 108 bytes."""
    before = os.getcwd()
    path.unlink(missing_ok=True)  # the lock is ours, so what is there is a dead daemon's
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
        os.chdir(path.parent)
        try:
            listener.bind(path.name)
        finally:
            os.chdir(before)
        path.chmod(0o600)
        listener.listen(1024)
        try:
            yield listener
        finally:
            path.unlink(missing_ok=True)


class Report:
    """The one line somebody waits for: ready, or why not."""

    def __init__(self, descriptor: int | None) -> None:
        self._descriptor = descriptor

    def ready(self, path: Path) -> None:
        self._say({"status": "ready", "socket": str(path)})

    def failed(self, error: errors.CasemateError) -> None:
        self._say({"status": "error", "error": error.to_json()})
        print(f"error: {error}", file=sys.stderr)

    def _say(self, line: dict[str, Any]) -> None:
        if self._descriptor is None:
            return
        try:
            os.write(self._descriptor, json.dumps(line).encode() + b"\n")
        except BrokenPipeError:  # who started us has gone; the daemon is of use to others
            log.info("nobody waited for this daemon to be ready")
        finally:
            os.close(self._descriptor)
            self._descriptor = None


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m casemate.daemon", description="Run the daemon in the foreground.")
    parser.add_argument("--idle-exit-s", type=float, help="end after so many seconds without a sandbox or a request")
    parser.add_argument("--ready-fd", type=int, help="write one line of JSON to this descriptor when ready or failed")
    options = parser.parse_args(arguments)
    structlog.configure(
        processors=[
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.JSONRenderer(),
        ],
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
    )
    report = Report(options.ready_fd)
    try:
        found = config.explain(idle_exit_s=options.idle_exit_s)
        settings = config.settings_of(found)
        make_home(settings)
        with held_lock(settings):
            give_home(settings)
            enter_view(settings)
            process = start_launcher(settings)
            drop_privilege(settings)
            anyio.run(
                serve, settings, process, options.idle_exit_s, report, found, backend_options={"use_uvloop": True}
            )
    except errors.CasemateError as error:
        report.failed(error)
        return 1
    return 0


def make_home(settings: config.Settings) -> None:
    """Raises HostError when the folder cannot be made."""
    try:
        settings.home.mkdir(parents=True, exist_ok=True)
        for name, mode in HOME_MODES.items():
            (settings.home / name).mkdir(exist_ok=True)
            (settings.home / name).chmod(mode)
    except OSError as error:
        raise errors.HostError(
            f"{settings.home} cannot be made: {error.strerror}",
            hint="set CASEMATE_HOME to a folder you can write",
        ) from error


if __name__ == "__main__":
    sys.exit(main())
