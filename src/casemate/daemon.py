"""The composition root: one process that owns a home, and the only place that names a driver.

    launcher (keeps the privilege) ← socketpair → daemon (its own uid) ← unix socket → SDK and CLI

Started by the SDK on demand (``python -m casemate.daemon --on-demand --ready-fd N``) or by
``casemate serve``. On the descriptor it writes one line: ready, or the error that kept it from it.
"""

from __future__ import annotations

import argparse
import fcntl
import json
import logging
import os
import resource
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

import casemate
from casemate import audit, config, errors, storage
from casemate.api.auth import Doors
from casemate.api.connections import Limits
from casemate.api.hosts import names_of
from casemate.api.keys import Keys
from casemate.api.listener import Listener, Server, open_listener, proxies_of
from casemate.api.native import app as native_app
from casemate.build import BuildHost, Ground, Images, forget_unfinished, open_images
from casemate.host import (
    Launcher,
    Swept,
    available_mib,
    drop_privilege,
    enter_view,
    give_home,
    open_launcher,
    start_launcher,
    sweep_kernel,
)
from casemate.host.launching import LauncherProcess
from casemate.images import Identities, Workshop
from casemate.posture import find_verdict
from casemate.sandbox import (
    Admission,
    Amount,
    PoolSpec,
    Records,
    Recovered,
    Resumer,
    Sandboxes,
    Seal,
    Shape,
    Starter,
    Supervisor,
    Suspender,
    Sweeper,
    open_sandboxes,
    open_seal,
    parse_fault,
    pools_of,
    recover,
)
from casemate.sandbox.index import Index
from casemate.vmm import Driver, RateLimit
from casemate.vmm.choice import Choice, choose
from casemate.vmm.firecracker.driver import FirecrackerDriver
from casemate.vmm.firecracker.exchange import sweep_exchanges
from casemate.vmm.qemu import QemuDriver

log = structlog.get_logger()
IDLE_CHECK_S = 1.0
HEAD_ROOM = 0.1  # of the memory and the disk that were free at start: for the daemon, page cache and everybody else
MAX_FILES = 65_536
# A VMM's uid has the daemon's group, to reach what is bound into its jail; inside, there is nothing else to reach
HOME_MODES = {".": 0o710, "artifacts": 0o710, "snapshots": 0o710, "vmm": 0o710} | dict.fromkeys(
    ("sandboxes", "run", "seal"), 0o700
)


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

    def __init__(
        self,
        settings: config.Settings,
        sandboxes: Sandboxes,
        images: Images,
        driver: Driver,
        admission: Admission,
        recovered: Recovered,
        trail: audit.Trail,
        keys: Keys,
    ) -> None:
        self.settings = settings
        self.trail = trail
        self.keys = keys
        self.sandboxes = sandboxes
        self.images = images
        self.driver = driver
        self.admission = admission
        self.recovered = recovered
        self._since = time.monotonic()

    def health(self) -> dict[str, Any]:
        return {
            "status": "stopping" if self.sandboxes.draining else "ok",
            "version": casemate.__version__,
            "pid": os.getpid(),
            "uptime_s": round(time.monotonic() - self._since, 1),
            "sandboxes": self.sandboxes.count_live(),
            "isolation": self.driver.isolation,
            "accelerator": self.driver.accelerator,
            "home": str(self.settings.home),
            "admission": self.admission.to_json(),
            "recovered": self.recovered.to_json(),
            "stored": self.images.upkeep.for_everybody(),
        }


@asynccontextmanager
async def open_service(
    settings: config.Settings, launcher: Launcher, choice: Choice, swept: Swept, seal: Seal
) -> AsyncIterator[Service]:
    """Everything from the database up to the sandboxes. Raises HostError."""
    database = storage.open(settings.home / "casemate.db")
    try:
        here = host_id(settings.home)
        shape = Shape(settings.vcpus, settings.memory_mib, settings.disk_mib)
        driver = driver_of(choice, settings, launcher)
        trail, index, folders = audit.Trail(database, here), Index(database, here), settings.home / "sandboxes"
        build_host = BuildHost(
            driver=driver,
            database=database,
            workshop=Workshop(settings.home),
            bootstrap=launcher.bootstrap,
            snapshots=settings.home / "snapshots",
            sandboxes=settings.home / "sandboxes",
            vmm_builds=settings.home / "vmm",
            upkeep_report=settings.run / "upkeep.json",
            seal=seal,
            trail=trail,
            verified=Identities(settings.run / "verified"),
            host_id=here,
            default_shape=shape,
            boot_timeout_s=settings.boot_timeout_s,
            shape_budget_mib=settings.shape_budget_mib,
        )
        recovered = recovered_from(swept)
        suspended = await recover(recovered, sweepers(launcher, build_host), index, folders, trail)
        keys = Keys(database, here, trail)
        await keys.load()
        pools = configured_pools(settings)
        admission = Admission(
            budget(settings, folders), commit_ratio=settings.commit_ratio, wait_s=settings.admission_wait_s
        )
        records = Records(index, trail, folders)
        disk_limit = RateLimit(settings.disk_bytes_per_s, settings.disk_operations_per_s)
        starter = Starter(driver, records, admission, settings.agent_timeout_s, disk_limit)
        async with open_images(build_host) as images:
            supervisor = Supervisor(
                starter,
                Suspender(records, build_host.seal),
                Resumer(starter, build_host.seal, Ground(build_host, images.shapes)),
                reach=parse_fault(os.environ.get("CASEMATE_FAULT")),
                park_margin_s=settings.park_margin_s,
            )
            async with open_sandboxes(
                supervisor,
                index,
                images.snapshot_for,
                suspended,
                snapshots=build_host.snapshots,
                pools=pools,
                refills_at_once=settings.pool_refills_at_once,
            ) as sandboxes:
                yield Service(settings, sandboxes, images, driver, admission, recovered, trail, keys)
        await trail.record(audit.EventKind.DAEMON_STOPPED, tenant="system", subject=here)
    finally:
        database.close()


def sweepers(launcher: Launcher, build_host: BuildHost) -> dict[str, Sweeper]:
    """What looks for orphans of each kind, in this order; the processes have been ended before (sweep_kernel)."""
    return {"cgroups": launcher.sweep, "builds": partial(forget_unfinished, build_host)}


def recovered_from(swept: Swept) -> Recovered:
    found = Recovered(alive=set(swept.alive))
    found.add("processes", swept.processes)
    found.add("mounts", swept.mounts)
    if swept.alive:
        found.failed["processes"] = f"could not be killed: {', '.join(swept.alive)}"
    if swept.stuck:
        found.failed["mounts"] = f"could not be unmounted: {', '.join(swept.stuck)}"
    return found


def configured_pools(settings: config.Settings) -> list[tuple[str, PoolSpec]]:
    """Raises InvalidSpec, NotSupported."""
    return pools_of(settings.pools, Shape(settings.vcpus, settings.memory_mib, settings.disk_mib))


def budget(settings: config.Settings, folders: Path) -> Amount:
    """What all sandboxes together may reserve: as set, else what this host has free, less head-room."""
    free = os.statvfs(folders)
    free_mib = free.f_bavail * free.f_frsize >> 20
    return Amount(
        settings.memory_budget_mib or round(available_mib() * (1 - HEAD_ROOM)),
        settings.disk_budget_mib or round(free_mib * (1 - HEAD_ROOM)),
    )


def doors_of(service: Service, listener: Listener | None) -> Doors:
    """Who may come in where."""
    settings = service.settings
    return Doors(
        keys=service.keys,
        accepted=audit.Tally(service.trail, audit.EventKind.AUTH_ACCEPTED),
        refused=audit.Tally(service.trail, audit.EventKind.AUTH_REFUSED),
        names=names_of(listener.host if listener else "localhost", settings.allow_hosts),
        proxies=proxies_of(settings),
        tenants_by_uid=settings.tenants_by_uid,
    )


async def serve(
    settings: config.Settings,
    process: LauncherProcess,
    choice: Choice,
    swept: Swept,
    seal: Seal,
    idle_exit_s: float | None,
    ready: Report,
    listener: Listener | None,
    found: Sequence[config.Found],
) -> None:
    """Answer requests until SIGTERM, SIGINT, the launcher's end or *idle_exit_s* without use."""
    async with open_launcher(process) as launcher, open_service(settings, launcher, choice, swept, seal) as service:
        doors = doors_of(service, listener)
        with bound(settings) as local:
            busy = Busy(native_app(service.sandboxes, service.images, service.health, doors, service.trail, found))
            limits = Limits(stall_s=settings.client_stall_s)
            server = Server(busy, limits)
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(doors.accepted.run)
                tasks.start_soon(doors.refused.run)
                tasks.start_soon(service.images.upkeep.run)
                tasks.start_soon(stop_on_signal, server, service.sandboxes)
                tasks.start_soon(stop_when_gone, server, launcher)
                if idle_exit_s is not None:
                    tasks.start_soon(stop_when_idle, server, busy, service, idle_exit_s)
                async with anyio.create_task_group() as serving:
                    remote = Server(busy, limits, listener.tls) if listener else None
                    if remote is not None and listener is not None:
                        serving.start_soon(remote.serve, [listener.socket])
                    ready.ready(settings.socket, listener.address if listener else None)
                    await server.serve([local])
                    if remote is not None:
                        remote.should_exit = True
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


async def stop_on_signal(server: Server, sandboxes: Sandboxes) -> None:
    """The first signal drains, and whoever asks meanwhile is told so; a second one does not wait for that."""
    with anyio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:
        async with anyio.create_task_group() as tasks:
            async for number in signals:
                if server.should_exit or sandboxes.draining:
                    server.should_exit = server.force_exit = True
                    continue
                log.info("stopping", signal=signal.Signals(number).name, sandboxes=sandboxes.count_live())
                tasks.start_soon(drain_and_exit, server, sandboxes)


async def drain_and_exit(server: Server, sandboxes: Sandboxes) -> None:
    await sandboxes.drain()
    server.should_exit = True


async def stop_when_gone(server: Server, launcher: Launcher) -> None:
    await launcher.wait_gone()
    log.error("the launcher has ended; without it no machine can be started or stopped")
    server.should_exit = True


async def stop_when_idle(server: Server, busy: Busy, service: Service, idle_exit_s: float) -> None:
    sandboxes, shapes = service.sandboxes, service.images.shapes
    while busy.idle_s() < idle_exit_s or sandboxes.count_live() or sandboxes.pools.kept or shapes.building:
        await anyio.sleep(IDLE_CHECK_S)
    server.should_exit = True


@contextmanager
def bound(settings: config.Settings) -> Iterator[socket.socket]:
    """The listening unix socket, for its owner only, unless other users have a tenant: then its peers are judged.

    Bound from its folder, as a path has 108 bytes.
    """
    path, before = settings.socket, os.getcwd()
    path.unlink(missing_ok=True)  # the lock is ours, so what is there is a dead daemon's
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
        os.chdir(path.parent)
        try:
            listener.bind(path.name)
        finally:
            os.chdir(before)
        path.chmod(0o666 if settings.tenants_by_uid else 0o600)
        listener.listen(1024)
        try:
            yield listener
        finally:
            path.unlink(missing_ok=True)


class Report:
    """The one line somebody waits for: ready, or why not."""

    def __init__(self, descriptor: int | None) -> None:
        self._descriptor = descriptor

    def ready(self, path: Path, listen: str | None) -> None:
        log.info("ready", socket=str(path), listen=listen)
        self._say({"status": "ready", "socket": str(path), "listen": listen})

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
    parser.add_argument("--on-demand", action="store_true", help="end after idle_exit_s without a sandbox or a request")
    parser.add_argument("--idle-exit-s", type=float, help="set idle_exit_s, and as --on-demand")
    parser.add_argument("--ready-fd", type=int, help="write one line of JSON to this descriptor when ready or failed")
    parser.add_argument("--listen", metavar="HOST:PORT", help="answer over TCP too, to who has an API key")
    parser.add_argument("--tls-cert", metavar="FILE", help="a certificate in PEM, for --listen")
    parser.add_argument("--tls-key", metavar="FILE", help="its key")
    parser.add_argument("--behind-proxy", metavar="ADDRESS", help="who does TLS instead; only they may connect")
    parser.add_argument("--allow-host", metavar="NAME", action="append", help="a name that requests may call us by")
    options = parser.parse_args(arguments)
    structlog.configure(
        processors=[
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.JSONRenderer(),
        ],
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
    )
    logging.getLogger("uvicorn.error").setLevel(logging.ERROR)  # its warnings are what strangers like to send us
    report = Report(options.ready_fd)
    try:
        found = config.explain(
            idle_exit_s=options.idle_exit_s,
            listen=options.listen,
            tls_cert=options.tls_cert,
            tls_key=options.tls_key,
            behind_proxy=options.behind_proxy,
            allow_hosts=options.allow_host,
        )
        settings = config.settings_of(found)
        proxies_of(settings)
        configured_pools(settings)  # before anything is opened, where an error would be a traceback
        allow_many_files()
        make_home(settings)
        with held_lock(settings), opened(settings) as listener:
            swept = sweep_kernel(settings)
            sweep_exchanges(settings.run)
            choice = chosen(settings)
            give_home(settings)
            enter_view(settings)
            process = start_launcher(settings)
            drop_privilege(settings)
            seal = open_seal(settings.home)
            on_demand = options.on_demand or options.idle_exit_s is not None
            idle_exit_s = settings.idle_exit_s if on_demand else None
            arguments_of_serve = settings, process, choice, swept, seal, idle_exit_s, report, listener, found
            anyio.run(serve, *arguments_of_serve, backend_options={"use_uvloop": True})
    except errors.CasemateError as error:
        report.failed(error)
        return 1
    return 0


def chosen(settings: config.Settings) -> Choice:
    """Which VMM; KVM is measured, once for each boot of the host. Raises what ``choose`` raises."""
    usable, allowed = find_verdict(settings.run).usable, settings.allow_known_bad_vmm
    choice = choose(settings.home / "vmm", usable, wish=settings.vmm, known_bad_allowed=allowed)
    log.info("machines", vmm=choice.vmm, accelerator=choice.accelerator, why=choice.why)
    return choice


def driver_of(choice: Choice, settings: config.Settings, launcher: Launcher) -> Driver:
    if choice.vmm == "firecracker" and choice.firecracker is not None:
        return FirecrackerDriver(settings, launcher, choice.firecracker)
    return QemuDriver(settings, launcher, choice.accelerator)


@contextmanager
def opened(settings: config.Settings) -> Iterator[Listener | None]:
    """The listener over TCP that was asked for, if any. Raises InvalidSpec, HostError."""
    listener = open_listener(settings)
    try:
        yield listener
    finally:
        if listener is not None:
            listener.close()


def allow_many_files() -> None:
    """A connection is a file, and a login's limit of 1024 is soon reached."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = MAX_FILES if hard == resource.RLIM_INFINITY else min(MAX_FILES, hard)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def make_home(settings: config.Settings) -> None:
    """Raises HostError when the folder cannot be made."""
    try:
        settings.home.mkdir(parents=True, exist_ok=True)
        passable = {".": 0o711, "run": 0o711} if settings.tenants_by_uid else {}  # to the socket, and no further
        for name, mode in (HOME_MODES | passable).items():
            (settings.home / name).mkdir(exist_ok=True)
            (settings.home / name).chmod(mode)
    except OSError as error:
        raise errors.HostError(
            f"{settings.home} cannot be made: {error.strerror}",
            hint="set CASEMATE_HOME to a folder you can write",
        ) from error


if __name__ == "__main__":
    sys.exit(main())
