"""The real app on a real unix socket, over a service whose guests live in this process."""

from __future__ import annotations

import json
import socket
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import anyio
import anyio.lowlevel
import httpx
from tests.fakes.fake_guest import Guest
from tests.unit.api.fake_kept import FakeKept

from casemate import errors, storage
from casemate.api.auth import Doors
from casemate.api.connections import Limits
from casemate.api.hosts import names_of
from casemate.api.keys import Keys
from casemate.api.listener import Server
from casemate.api.native import app
from casemate.audit import EventKind, Tally, Trail
from casemate.sandbox import (
    SHARED,
    Handle,
    Link,
    PoolSpec,
    SandboxInfo,
    SandboxSpec,
    Shape,
    ShapeWish,
    State,
    StateReason,
    new_id,
)
from casemate.sandbox.meters import Meters
from casemate.sandbox.spec import SuspendedFacts

DEADLINE_S = 60


@dataclass
class FakePools:
    """Pools that are only written down; there is one from the start, of tenant ``local``."""

    known: dict[str, dict[str, Any]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._add("local", PoolSpec("mine", Shape(1, 512, 1024), 1))

    async def put(self, tenant: str, spec: PoolSpec, *, actor: str = "host") -> dict[str, Any]:
        return self._add(tenant, spec)

    def get(self, tenant: str, ref: str) -> dict[str, Any]:
        for pool in self.listed(tenant):
            if ref in (pool["id"], pool["image"]):
                return pool
        raise errors.NotFound(f"there is no pool {ref[:80]!r}")

    async def remove(self, tenant: str, ref: str, *, shared: bool, actor: str = "host") -> dict[str, Any]:
        pool = self.get(tenant, ref)
        if pool["tenant"] == SHARED and not shared:
            raise errors.Forbidden("not yours")
        return self.known.pop(pool["id"])

    def listed(self, tenant: str) -> list[dict[str, Any]]:
        return [pool for pool in self.known.values() if pool["tenant"] in (tenant, SHARED)]

    def _add(self, tenant: str, spec: PoolSpec) -> dict[str, Any]:
        asked = ("image", "network", "min_ready", "max_ready", "target_utilization", "schedule")
        counted = ("wanted", "ready", "making", "claimed", "in_use", "hits", "died", "refill_failures")
        measured = {"p50_ms": None, "p95_ms": None}
        pool = {name: getattr(spec, name) for name in asked} | dict.fromkeys(counted, 0) | asdict(spec.shape)
        pool |= {"id": new_id(), "tenant": tenant, "version": None, "origin": "api", "created_at": time.time()}
        pool |= {"misses": {"empty": 2}, "refill": measured, "claim": measured, "failure": None}
        self.known[str(pool["id"])] = pool
        return pool


@dataclass
class FakeSandboxes:
    """The service's methods over guests of this process. ``hold`` keeps creates pending."""

    tasks: anyio.abc.TaskGroup
    pools: FakePools = field(default_factory=FakePools)
    meters: Meters = field(default_factory=Meters)
    handles: dict[str, Handle] = field(default_factory=dict)
    guests: dict[str, Guest] = field(default_factory=dict)
    hold: anyio.Event | None = None
    cancelled: int = 0
    lives: list[tuple[object, str]] = field(default_factory=list)  # what was asked for, and by whom or of whom
    news: int = 0  # how often a create tells of its progress
    fail_with: errors.CasemateError | None = None

    async def create(
        self,
        tenant: str,
        spec: SandboxSpec,
        *,
        actor: str = "host",
        progress: Callable[[str, str, float | None], None] | None = None,
    ) -> Handle:
        if self.fail_with:
            raise self.fail_with
        for step in range(self.news if progress else 0):
            progress("warm", f"step {step} " + "." * 4000, step / self.news)
        if self.hold:
            try:
                await self.hold.wait()
            except BaseException:
                self.cancelled += 1
                raise
        now = time.time()
        info = SandboxInfo(
            id=new_id(), tenant=tenant, name=spec.name, image="python@1", snapshot="s", state=State.RUNNING,
            isolation="emulated", accelerator="tcg", vcpus=1, memory_mib=512, disk_mib=1024,
            labels=dict(spec.labels), created_at=now, updated_at=now, idle_timeout_s=spec.idle_timeout_s,
            on_idle=spec.on_idle, max_duration_s=None, network="none", attached=spec.attached,
            park_after_s=spec.park_after_s, auto_resume=spec.auto_resume,
        )  # fmt: skip
        handle = Handle(info, spec)
        await self.tasks.start(self._supervise, handle)
        return handle

    async def _supervise(self, handle: Handle, *, task_status: anyio.abc.TaskStatus[None]) -> None:
        guest, link = Guest(), Link(handle.info.id, silence_s=30)
        self.guests[handle.info.id], self.handles[handle.info.id] = guest, handle
        handle._link = link
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(guest.run)
            tasks.start_soon(link.run, guest.host_end)
            task_status.started()
            await handle._stop.wait()
            handle.info = replace(handle.info, state=State.TERMINATING, state_reason=handle._why)
            tasks.cancel_scope.cancel()
        handle.info = replace(handle.info, state=State.TERMINATED)
        handle.ended.set()

    def get(self, tenant: str, ref: str) -> Handle:
        for handle in self.handles.values():
            if handle.info.tenant == tenant and ref in (handle.info.id, handle.info.name):
                return handle
        raise errors.NotFound(f"no live sandbox {ref[:80]!r}")

    async def info(self, tenant: str, ref: str) -> SandboxInfo:
        return self.get(tenant, ref).info

    async def list(self, tenant: str, *, include_terminated: bool = False) -> list[SandboxInfo]:
        own = [h.info for h in self.handles.values() if h.info.tenant == tenant]
        return [info for info in own if include_terminated or info.state is not State.TERMINATED]

    async def kill(self, tenant: str, ref: str) -> SandboxInfo:
        return await self.get(tenant, ref).kill()

    async def suspend(self, tenant: str, ref: str, *, actor: str = "host") -> SandboxInfo:
        handle = self.get(tenant, ref)
        self.lives.append(("suspend", actor))
        facts = SuspendedFacts(time.time(), 20_000, 16_384, 4_096, 12.5, 40.25)
        handle.info = replace(handle.info, state=State.SUSPENDED, suspended=facts, pid=None)
        return handle.info

    async def resume(self, tenant: str, ref: str, *, cold: bool = False, actor: str = "host") -> SandboxInfo:
        handle = self.get(tenant, ref)
        self.lives.append(("cold" if cold else "resume", actor))
        handle.info = replace(handle.info, state=State.RUNNING, suspended=None)
        return handle.info

    async def fork(
        self,
        tenant: str,
        ref: str,
        count: int,
        *,
        actor: str = "host",
        labels: Mapping[str, str] | None = None,
        on_progress: Callable[[str, str, float | None], None] | None = None,
    ) -> Sequence[Handle]:
        parent = self.get(tenant, ref)
        if not 1 <= count <= 64:
            raise errors.InvalidSpec(f"count is {count}")
        self.lives.append(("fork", actor))
        spec = replace(parent.spec, name=None, labels={**parent.info.labels, **(labels or {})})
        copies = [await self.create(tenant, spec, actor=actor, progress=on_progress) for _ in range(count)]
        for copy in copies:
            copy.info = replace(copy.info, forked_from=parent.info.id)
        return copies

    async def keep_alive(self, tenant: str, ref: str, for_s: float) -> SandboxInfo:
        self.lives.append((for_s, self.get(tenant, ref).info.id))
        return self.get(tenant, ref).info

    def is_parked(self, sandbox_id: str) -> bool:
        return self.handles[sandbox_id].parked


def _check_image(tenant: str, ref: str) -> None:
    if ref != "python@1" and (ref, tenant) != ("mine", "local"):
        raise errors.NotFound(f"there is no image {ref[:80]!r}")


@dataclass
class FakeImages:
    """``hold`` keeps a snapshot under way."""

    sessions: FakeKept
    hold: anyio.Event | None = None
    kept: list[tuple[object, ...]] = field(default_factory=list)
    cancelled: int = 0

    @property
    def carriage(self) -> FakeKept:
        return self.sessions

    async def shape_for(
        self, tenant: str, ref: str, vcpus: int | None, memory_mib: int | None, disk_mib: int | None
    ) -> Shape:
        return ShapeWish(vcpus, memory_mib, disk_mib).filled(Shape(1, 512, 1024))

    async def keep(
        self, tenant: str, ref: str, name: str, tag: str | None, *, sandboxes: FakeSandboxes, actor: str
    ) -> dict[str, Any]:
        sandbox = sandboxes.get(tenant, ref).info
        if self.hold:
            try:
                await self.hold.wait()
            except BaseException:
                self.cancelled += 1
                raise
        self.kept.append((sandbox.id, name, tag, actor))
        version = {"name": name, "version": len(self.kept), "tag": tag, "contains_session_state": True}
        return version | {"parent": sandbox.image, "pause_ms": 12.5, "frozen_ms": 30.25, "took_ms": 400.5}

    async def list(self, tenant: str) -> list[dict[str, Any]]:
        return [{"name": "python", "version": version, "labels": {"v": str(version)}} for version in (1, 2, 3)]

    async def get(self, tenant: str, ref: str) -> dict[str, Any]:
        _check_image(tenant, ref)
        return {"name": "python", "version": 1, "artifacts": {}}

    async def verify(self, tenant: str, ref: str, progress: object) -> dict[str, Any]:
        _check_image(tenant, ref)
        return {"ok": True, "files": []}

    async def remove(self, tenant: str, ref: str, force: bool, *, actor: str) -> dict[str, Any]:
        _check_image(tenant, ref)
        return {"dry_run": False, "removed": [], "size_bytes": 0}

    async def prune(self, tenant: str, dry_run: bool) -> dict[str, Any]:
        return {"dry_run": dry_run, "removed": [], "size_bytes": 0}

    @asynccontextmanager
    async def export(self, tenant: str, ref: str):
        _check_image(tenant, ref)

        async def pieces():
            yield b"a bundle"

        yield 8, pieces()

    async def receive(self, tenant: str, name: str | None, pieces: AsyncIterator[bytes]) -> dict[str, Any]:
        return {"name": name or "python", "version": len(b"".join([piece async for piece in pieces]))}

    async def build(
        self, tenant: str, name: str, force: bool, progress: Callable[[str, str, float | None], None]
    ) -> dict[str, Any]:
        for step in range(1000):
            progress("root", f"step {step}", step / 1000)
        if name != "python":
            await anyio.sleep(0.2)  # what was said so far goes out first
            raise errors.ToolFailed("mmdebstrap failed", hint="see its last lines")
        return {"name": name, "version": 2, "forced": force}


@dataclass
class World:
    """*client* speaks over the unix socket, as the daemon's own user; ``over_tcp`` as anybody."""

    client: httpx.AsyncClient
    sandboxes: FakeSandboxes
    images: FakeImages
    path: str
    port: int
    trail: Trail
    keys: Keys
    doors: Doors
    app: Any
    secret: str = ""

    @property
    def kept(self) -> FakeKept:
        return self.images.sessions

    async def key(self, tenant: str = "local", *scopes: str, expires_s: float | None = None) -> str:
        made = {"tenant": tenant, "scopes": scopes or ("*",), "expires_s": expires_s}
        answer = await self.client.post("/v1/keys", json=made)
        assert answer.status_code == 201, answer.text
        return str(answer.json()["key"])

    def over_tcp(self, key: str | None = None, **headers: str) -> httpx.AsyncClient:
        given = headers | ({"authorization": f"Bearer {key}"} if key else {})
        url = f"http://127.0.0.1:{self.port}"
        return httpx.AsyncClient(base_url=url, headers=given, timeout=20, trust_env=False)

    async def create(self, **body: Any) -> str:
        answer = await self.client.post("/v1/sandboxes", json=body)
        assert answer.status_code == 201, answer.text
        return str(answer.json()["id"])

    def guest(self, sandbox: str) -> Guest:
        return self.sandboxes.guests[sandbox]

    async def run(self, sandbox: str, *argv: str, **more: Any) -> list[dict[str, Any]]:
        """All lines of an exec."""
        answer = await self.client.post(f"/v1/sandboxes/{sandbox}/execs", json={"argv": argv, **more})
        assert answer.status_code == 200, answer.text
        return [json.loads(line) for line in answer.text.splitlines()]

    async def start(self, sandbox: str, *argv: str, **more: Any) -> str:
        """The id of an exec that nobody follows."""
        body = {"argv": argv, "stream": False, **more}
        answer = await self.client.post(f"/v1/sandboxes/{sandbox}/execs", json=body)
        assert answer.status_code == 201, answer.text
        return str(answer.json()["exec_id"])


async def until(condition: Callable[[], object], within_s: float = 10) -> None:
    with anyio.fail_after(within_s):
        while not condition():
            await anyio.sleep(0.005)


@asynccontextmanager
async def open_world(folder: Path, database: storage.Database, *, limits: Limits | None = None, **doors: Any):
    """The real app on a real unix socket and a real port of the loopback."""
    path = folder / "s"
    trail = Trail(database, "h")
    keys = Keys(database, "h", trail)
    await keys.load()
    async with anyio.create_task_group() as tasks:
        sandboxes, images = FakeSandboxes(tasks), FakeImages(FakeKept())
        accepted, refused = Tally(trail, EventKind.AUTH_ACCEPTED), Tally(trail, EventKind.AUTH_REFUSED)
        entrance = Doors(keys, accepted, refused, **{"names": names_of("127.0.0.1", ()), **doors})
        served = app(sandboxes, images, lambda: {"status": "ok"}, entrance, trail)
        with socket.socket(socket.AF_UNIX) as local, socket.socket() as remote:
            local.bind(str(path))
            remote.bind(("127.0.0.1", 0))
            for listener in (local, remote):
                listener.listen(2000)
            servers = [Server(served, limits or Limits()), Server(served, limits or Limits())]
            ended = [anyio.Event(), anyio.Event()]

            async def serve(server: Server, listener: socket.socket, end: anyio.Event) -> None:
                with anyio.CancelScope(shield=True):
                    await server.serve([listener])
                end.set()

            for each in zip(servers, (local, remote), ended, strict=True):
                tasks.start_soon(serve, *each)
            transport = httpx.AsyncHTTPTransport(uds=str(path))
            try:
                async with httpx.AsyncClient(transport=transport, base_url="http://c", timeout=20) as client:
                    port = remote.getsockname()[1]
                    yield World(client, sandboxes, images, str(path), port, trail, keys, entrance, served)
            finally:
                for server in servers:
                    server.should_exit = True
                with anyio.CancelScope(shield=True), anyio.move_on_after(10):
                    for handle in sandboxes.handles.values():
                        await handle.kill()
                    for end in ended:
                        await end.wait()  # it cannot be cancelled cleanly, only asked


def reason(handle: Handle) -> StateReason | None:
    return handle.info.state_reason
