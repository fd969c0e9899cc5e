"""The daemon's HTTP over this host's own processes and a folder: a real server on a real unix socket.

No sandbox at all: what is tested with it is the client. ``serve`` runs it in a thread.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import os
import signal
import socket
import threading
import time
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route
from tests.unit.sdk import fake_snapshots

from casemate import errors

KEEP_ALIVE_S = 0.2
Json = dict[str, Any]


@dataclass
class Box:
    """One pretended sandbox: a folder as its home, and the processes that run in it."""

    info: Json
    home: Path
    running: dict[str, asyncio.subprocess.Process] = field(default_factory=dict)
    ended: asyncio.Event = field(default_factory=asyncio.Event)
    names: Json = field(default_factory=dict)

    def kill(self, code: str) -> None:
        for process in self.running.values():
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
        self.info |= {"state": "terminated", "state_reason": {"code": code, "message": code}}
        self.ended.set()


def fail(error: errors.CasemateError, status: int) -> Response:
    return JSONResponse(error.to_json(), status)


class FakeDaemon:
    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.boxes: dict[str, Box] = {}
        self.starts: list[Json] = []
        self.requests: list[Request] = []
        self.keys: list[Json] = []
        self.pools: dict[str, Json] = {}
        self.broken: Json | None = None
        self.bundle = b"a bundle" * 300_000
        self.sound = True
        self.looks = 0

    # -------------------------------------------------------------------------------- sandboxes

    def _new(self, body: Json) -> Box:
        number = len(self.boxes) + 1
        sandbox_id = f"{number:026d}"
        home = self.folder / sandbox_id
        home.mkdir()
        info = {
            "id": sandbox_id,
            "name": body["name"],
            "image": body["image"] + "@1",
            "state": "running",
            "state_reason": None,
            "isolation": "emulated",
            "accelerator": "tcg",
            "vcpus": body["vcpus"] or 1,
            "memory_mib": body["memory_mib"] or 512,
            "disk_mib": body["disk_mib"] or 1024,
            "labels": body["labels"],
            "created_at": time.time(),
            "updated_at": time.time(),
            "timings": {"restore_ms": 30.5, "first_answer_ms": 90.25, "admitted_ms": 0.5},
            "pid": os.getpid(),
            "a_field_of_tomorrow": 1,
        }
        info |= {k: body[k] for k in ("idle_timeout_s", "on_idle", "max_duration_s", "network", "attached")}
        info |= {k: body[k] for k in ("park_after_s", "auto_resume")} | {"suspended": None, "parked": False}
        box = self.boxes[sandbox_id] = Box(info, home)
        return box

    def _box(self, request: Request) -> Box:
        ref = request.path_params["ref"]
        for box in self.boxes.values():
            if box.info["id"] == ref or box.info["name"] == ref:
                return box
        raise errors.NotFound(f"there is no sandbox {ref!r}", hint="casemate ps lists them")

    async def create(self, request: Request) -> Response:
        self.requests.append(request)
        body = await request.json()
        if body["image"] != "python":
            return fail(errors.NotFound(f"there is no image {body['image']!r}", hint="casemate image ls"), 404)
        if not body["build"] and body["memory_mib"]:
            return fail(errors.SnapshotMissing("no snapshot", hint="build one"), 409)
        news = [{"event": "progress", "step": "boot", "message": "booting Linux", "fraction": 0.1}] * body["progress"]
        box = self._new(body)
        if not body["attached"] and news:
            return Response(b"".join(map(_line, [*news, box.info])), 201, media_type="application/x-ndjson")
        if not body["attached"]:
            return JSONResponse(box.info, 201)

        async def attached() -> AsyncIterator[bytes]:
            try:
                for line in news:
                    yield _line(line)
                yield _line(box.info)
                while not box.ended.is_set():
                    with contextlib.suppress(TimeoutError):
                        await asyncio.wait_for(box.ended.wait(), KEEP_ALIVE_S)
                    yield _line({"event": "keepalive"})
            finally:
                box.kill("killed")

        return StreamingResponse(attached(), 201, media_type="application/x-ndjson")

    async def list(self, request: Request) -> Response:
        asked = request.query_params
        labels = [label.partition("=")[::2] for label in asked.getlist("label")]
        shown = [b.info for b in self.boxes.values() if "all" in asked or not b.ended.is_set()]
        shown = [i for i in shown if all(i["labels"].get(name) == value for name, value in labels)]
        begin, end = int(asked.get("cursor", 0)), int(asked.get("cursor", 0)) + min(int(asked.get("limit", 100)), 3)
        following = str(end) if end < len(shown) else None  # a daemon may give less than was asked for
        return JSONResponse({"sandboxes": shown[begin:end], "next": following})

    async def get(self, request: Request) -> Response:
        return JSONResponse(self._box(request).info)

    async def delete(self, request: Request) -> Response:
        box = self._box(request)
        box.kill("killed")
        return JSONResponse(box.info)

    async def suspend(self, request: Request) -> Response:
        box = self._box(request)
        if box.info["state"] == "terminated":
            raise errors.StateConflict("cannot suspend it: it is terminated", hint="create a new sandbox")
        facts = {"at": time.time(), "stored_bytes": 11 << 20, "dirty_bytes": 9 << 20, "written_bytes": 1 << 20}
        box.info |= {"state": "suspended", "suspended": facts | {"pause_ms": 50.4, "took_ms": 120.2}}
        return JSONResponse(box.info)

    async def resume(self, request: Request) -> Response:
        box = self._box(request)
        self.starts.append(await request.json())
        box.info |= {"state": "running", "suspended": None}
        return JSONResponse(box.info)

    async def fork(self, request: Request) -> Response:
        self.requests.append(request)
        parent, body = self._box(request), await request.json()
        self.starts.append(body)
        if not 1 <= body["count"] <= 64:
            raise errors.InvalidSpec(f"count is {body['count']}", hint="1 to 64")
        labels = {**parent.info["labels"], **(body["labels"] or {})}
        copies = []
        for _ in range(body["count"]):
            copy = self._new({**parent.info, "image": "python", "name": None, "labels": labels})
            copy.info["forked_from"] = parent.info["id"]
            copies.append(copy.info)
        if not body["progress"]:
            return JSONResponse({"sandboxes": copies}, 201)
        news = {"event": "progress", "step": "fork", "message": "1 of 1", "fraction": 1.0}
        return Response(_line(news) + _line({"sandboxes": copies}), 201, media_type="application/x-ndjson")

    async def snapshot(self, request: Request) -> Response:
        box, body = self._box(request), await request.json()
        self.starts.append(body)
        version = {"name": body["name"], "version": 3, "tag": body["tag"], "parent": box.info["image"]}
        return JSONResponse(version | {"pause_ms": 12.4, "frozen_ms": 30.2, "took_ms": 400.6}, 201)

    async def keep_alive(self, request: Request) -> Response:
        self.starts.append(await request.json())
        return JSONResponse(self._box(request).info)

    # ------------------------------------------------------------------------------------- execs

    async def start(self, request: Request) -> Response:
        box, body = self._box(request), await request.json()
        self.starts.append(body)
        argv = ["python3", *body["argv"]] if body["script"] else body["argv"]
        try:
            process = await asyncio.create_subprocess_exec(
                *argv,
                stdin=asyncio.subprocess.PIPE if body["stdin"] else asyncio.subprocess.DEVNULL,
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.PIPE,
                env=os.environ | body["env"],
                cwd=box.home / (body["cwd"] or "."),
                start_new_session=True,
            )
        except OSError as error:
            return fail(errors.ExecRefused(f"{argv[0]}: {error.strerror}", evidence={"errno": "ENOENT"}), 422)
        exec_id = f"{len(box.running):016x}"
        box.running[exec_id] = process
        return StreamingResponse(_follow(process, exec_id, body["timeout_s"]), media_type="application/x-ndjson")

    async def execs(self, request: Request) -> Response:
        return JSONResponse({"execs": [{"exec_id": exec_id} for exec_id in self._box(request).running]})

    def _process(self, request: Request) -> asyncio.subprocess.Process:
        process = self._box(request).running[request.path_params["exec_id"]]
        if process.returncode is not None:
            raise errors.StateConflict("the exec has ended; it takes no more input")
        return process

    async def stdin(self, request: Request) -> Response:
        process = self._process(request)
        assert process.stdin is not None
        try:
            async for piece in request.stream():
                process.stdin.write(piece)
                await process.stdin.drain()
            if "eof" in request.query_params:
                process.stdin.close()
        except (BrokenPipeError, ConnectionResetError) as error:
            raise errors.StateConflict("the exec has ended; it takes no more input") from error
        return JSONResponse({})

    async def signal(self, request: Request) -> Response:
        process, body = self._process(request), await request.json()
        os.killpg(process.pid, signal.Signals[f"SIG{body['signal']}"])
        return JSONResponse({})

    # ------------------------------------------------------------------------- files, code, images

    async def files(self, request: Request) -> Response:
        path = self._box(request).home / request.query_params["path"].lstrip("/")
        try:
            if request.method == "GET":
                return Response(path.read_bytes(), media_type="application/octet-stream")
            if request.method == "PUT":
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(await request.body())
                path.chmod(int(request.query_params.get("mode", "0644"), 8))
                return JSONResponse({"path": str(path), "size": path.stat().st_size})
            path.unlink()
            return JSONResponse({})
        except OSError as error:
            return _refused(error)

    async def stat(self, request: Request) -> Response:
        try:
            return JSONResponse(_entry(self._box(request).home / request.query_params["path"]))
        except OSError as error:
            return _refused(error)

    async def list_files(self, request: Request) -> Response:
        folder = self._box(request).home / request.query_params["path"]
        return JSONResponse({"entries": [_entry(path) for path in sorted(folder.iterdir())]})

    async def code(self, request: Request) -> Response:
        box, body = self._box(request), await request.json()
        end: Json = {"kind": "ok"}
        lines: list[Json] = [
            {"event": "begun", "cell_id": "c", "context": body["context"], "execution_count": 1},
            {"event": "stdout", "offset": 0, "data": base64.b64encode(b"said\n").decode()},
        ]
        try:
            shown = {"type": "result", "data": {"text/plain": repr(eval(body["code"], box.names))}}
            lines.append({"event": "result", "offset": 5, "result": shown})
        except Exception as raised:
            end = {"kind": "error", "name": type(raised).__name__, "value": str(raised), "traceback": "…"}
        lines.append({"event": "end", "end": end, "execution_count": 1, "duration_ms": 1.5, "offset": 5})
        return Response(b"".join(map(_line, lines)), media_type="application/x-ndjson")

    async def images(self, request: Request) -> Response:
        snapshots = [
            {"id": "s", "vcpus": 1, "memory_mib": 512, "disk_mib": 1024, "state": "ready", "memory_bytes": 2**28}
        ]
        image = {"name": "python", "version": 1, "state": "ready", "active": True, "created_at": 1.7e9}
        return JSONResponse({"images": [image | {"size_bytes": 2**29, "snapshots": snapshots}]})

    async def build(self, request: Request) -> Response:
        lines: list[Json] = [
            {"event": "progress", "step": "kernel", "message": "unpacking", "fraction": None},
            {"event": "progress", "step": "root", "message": "installing", "fraction": 0.5},
        ]
        if request.path_params["name"] == "python":
            lines.append({"event": "end", "image": {"name": "python", "version": 1}})
        else:
            lines.append({"event": "error", "error": errors.NotFound("there is no recipe").to_json()})
        return Response(b"".join(map(_line, lines)), media_type="application/x-ndjson")

    async def set_pool(self, request: Request) -> Response:
        asked = await request.json()
        counted = {
            "wanted": 4,
            "ready": 3,
            "claimed": 1,
            "in_use": 1,
            "hits": 7,
            "misses": {"empty": 2},
            "failure": None,
        }
        measured = {"claim": {"p50_ms": 31.2, "p95_ms": 44.0}, "refill": {"p50_ms": 900.4, "p95_ms": None}}
        shape = {"vcpus": 1, "memory_mib": asked["memory_mib"] or 512, "disk_mib": 1024}
        tenant = "system" if asked["shared"] else "local"
        self.pools[asked["image"]] = asked | counted | measured | shape | {"id": "7k5qa364e9e1v0", "tenant": tenant}
        return JSONResponse(self.pools[asked["image"]])

    async def list_pools(self, request: Request) -> Response:
        return JSONResponse({"pools": list(self.pools.values()), "next": None})

    async def pool(self, request: Request) -> Response:
        found = self.pools[request.path_params["ref"]]
        if request.method == "DELETE":
            del self.pools[found["image"]]
        return JSONResponse(found)

    async def make_key(self, request: Request) -> Response:
        body = await request.json()
        key = {"id": "0" * 12, "created_at": time.time(), "expires_at": None, "revoked_at": None}
        key |= {name: body[name] for name in ("name", "tenant", "scopes")}
        if body["expires_s"]:
            key["expires_at"] = time.time() + body["expires_s"]
        self.keys.append(key)
        return JSONResponse(key | {"key": "cm_" + "0" * 12 + "_secret"}, 201)

    async def list_keys(self, request: Request) -> Response:
        return JSONResponse({"keys": self.keys, "next": None})

    async def revoke_key(self, request: Request) -> Response:
        for key in self.keys:
            if key["id"] == request.path_params["id"]:
                key["revoked_at"] = time.time()
                return JSONResponse(key)
        raise errors.NotFound("there is no such key")

    async def events(self, request: Request) -> Response:
        shown = [
            {"id": number, "created_at": 1.7e9, "event": "sandbox.created", "actor": "host", "subject": f"s{number}"}
            | {"detail": {"message": "a\x1b[2Jb", "count": 2}}
            for number in (1, 2)
        ]
        if "follow" in request.query_params:
            lines = [{"event": "following"}, {"event": "keepalive"}, shown[0] | {"id": 3, "subject": "new"}]
            return Response(b"".join(map(_line, lines)), media_type="application/x-ndjson")
        return JSONResponse({"events": shown, "next": 2})

    async def audit(self, request: Request) -> Response:
        mark = f"2:{'a' * 64}"
        said = {"ok": self.broken is None, "events": 2, "mark": mark, "broken": self.broken}
        return JSONResponse(said | {"warnings": [{"id": 1, "why": "there was no anchor"}]})

    async def image(self, request: Request) -> Response:
        if request.path_params["ref"] != "python":
            raise errors.NotFound("there is no image", hint="casemate image ls")
        if request.method == "DELETE":
            if "force" not in request.query_params:
                raise errors.StateConflict("image python@1 is what 'python' means", hint="--force")
            return JSONResponse({"dry_run": False, "removed": [], "size_bytes": 2**20})
        return JSONResponse({"name": "python", "version": 1, "size_bytes": len(self.bundle)})

    async def export(self, request: Request) -> Response:
        return Response(self.bundle, media_type="application/octet-stream")

    async def receive(self, request: Request) -> Response:
        if await request.body() != self.bundle:
            return fail(errors.InvalidSpec("this is not an image", hint="casemate image export"), 409)
        return JSONResponse({"name": request.query_params.get("name", "python"), "version": 2}, 201)

    async def prune(self, request: Request) -> Response:
        item = {"kind": "snapshot", "name": "s", "why": "nothing needs it", "size_bytes": 2**21}
        return JSONResponse({"dry_run": (await request.json())["dry_run"], "removed": [item], "size_bytes": 2**21})

    async def verify(self, request: Request) -> Response:
        files = [{"file": "kernel", "ok": True, "why": ""}, {"file": "root", "ok": self.sound, "why": "changed"}]
        report = {"name": "python", "version": 1, "ok": self.sound, "files": files}
        return Response(_line({"event": "end", "report": report}), media_type="application/x-ndjson")

    async def stats(self, request: Request) -> Response:
        box = self._box(request)
        self.looks += 1
        guest = {"memory_total_bytes": 2**29, "memory_available_bytes": 2**28, "user_memory_bytes": None}
        guest |= {"user_processes": 1, "execs": 2, "execs_running": 1}
        body = {"sandbox": box.info["id"], "pid": 1, "memory_private_bytes": 2**24, "guest": guest}
        return JSONResponse(body | {"sampled_at": float(self.looks), "cpu_s": self.looks / 4})

    async def settings(self, request: Request) -> Response:
        found = {"name": "vcpus", "value": 3, "origin": "file", "source": "config.toml"}
        return JSONResponse({"settings": [found]})

    async def health(self, request: Request) -> Response:
        return JSONResponse({"status": "ok", "version": "0.1.0", "pid": os.getpid()})

    def app(self) -> Starlette:
        box = "/v1/sandboxes/{ref}"
        routes = [
            Route("/v1/health", self.health),
            Route("/v1/sandboxes", self.create, methods=["POST"]),
            Route("/v1/sandboxes", self.list),
            Route(box, self.get),
            Route(box, self.delete, methods=["DELETE"]),
            Route(f"{box}/suspend", self.suspend, methods=["POST"]),
            Route(f"{box}/resume", self.resume, methods=["POST"]),
            Route(f"{box}/fork", self.fork, methods=["POST"]),
            Route(f"{box}/snapshot", self.snapshot, methods=["POST"]),
            Route(f"{box}/keep-alive", self.keep_alive, methods=["POST"]),
            Route(f"{box}/execs", self.start, methods=["POST"]),
            Route(f"{box}/execs", self.execs),
            Route(f"{box}/execs/{{exec_id}}/stdin", self.stdin, methods=["POST"]),
            Route(f"{box}/execs/{{exec_id}}/signal", self.signal, methods=["POST"]),
            Route(f"{box}/files", self.files, methods=["GET", "PUT", "DELETE"]),
            Route(f"{box}/files/stat", self.stat),
            Route(f"{box}/files/list", self.list_files),
            Route(f"{box}/code", self.code, methods=["POST"]),
            Route("/v1/images", self.images),
            Route("/v1/keys", self.make_key, methods=["POST"]),
            Route("/v1/keys", self.list_keys),
            Route("/v1/keys/{id}", self.revoke_key, methods=["DELETE"]),
            Route("/v1/pools", self.set_pool, methods=["PUT"]),
            Route("/v1/pools", self.list_pools),
            Route("/v1/pools/{ref}", self.pool, methods=["GET", "DELETE"]),
            Route("/v1/events", self.events),
            Route("/v1/audit", self.audit),
            Route(f"{box}/stats", self.stats),
            Route("/v1/config", self.settings),
            Route("/v1/images", self.images, methods=["GET"]),
            Route("/v1/images", self.receive, methods=["POST"]),
            Route("/v1/images/prune", self.prune, methods=["POST"]),
            Route("/v1/images/{ref}", self.image, methods=["GET", "DELETE"]),
            Route("/v1/images/{ref}/export", self.export),
            Route("/v1/images/{ref}/verify", self.verify, methods=["POST"]),
            Route("/v1/images/{name}/build", self.build, methods=["POST"]),
            *fake_snapshots.ROUTES,
        ]

        async def ours(request: Request, raised: Exception) -> Response:
            assert isinstance(raised, errors.CasemateError)
            return fail(raised, 404 if isinstance(raised, errors.NotFound) else 409)

        return Starlette(routes=routes, exception_handlers={errors.CasemateError: ours})


def _line(body: Json) -> bytes:
    return JSONResponse(body).body + b"\n"


def _entry(path: Path) -> Json:
    found = path.stat()
    return {
        "name": path.name,
        "path": str(path),
        "type": "dir" if path.is_dir() else "file",
        "size": found.st_size,
        "mode": found.st_mode & 0o7777,
        "uid": found.st_uid,
        "gid": found.st_gid,
        "mtime_ns": found.st_mtime_ns,
    }


def _refused(error: OSError) -> Response:
    refusal = errors.FileRefused(f"{error.strerror}", evidence={"errno": "ENOENT"})
    return fail(refusal, 404 if isinstance(error, FileNotFoundError) else 409)


async def _follow(process: asyncio.subprocess.Process, exec_id: str, timeout_s: float | None) -> AsyncIterator[bytes]:
    """One piece at a time: who does not read holds the process up, as the real one does."""
    pieces: asyncio.Queue[tuple[str, bytes]] = asyncio.Queue(1)

    async def pump(stream: str, reader: asyncio.StreamReader) -> None:
        while piece := await reader.read(65536):
            await pieces.put((stream, piece))
        await pieces.put((stream, b""))

    assert process.stdout is not None
    assert process.stderr is not None
    offsets = {"stdout": 0, "stderr": 0}
    began = time.monotonic()
    try:
        yield _line({"event": "started", "exec_id": exec_id, "pid": process.pid})
        async with asyncio.TaskGroup() as tasks:
            for name, reader in (("stdout", process.stdout), ("stderr", process.stderr)):
                tasks.create_task(pump(name, reader))
            open_streams, timed_out = 2, False
            while open_streams:
                try:
                    stream, piece = await asyncio.wait_for(pieces.get(), KEEP_ALIVE_S)
                except TimeoutError:
                    if timeout_s is not None and time.monotonic() - began > timeout_s:
                        os.killpg(process.pid, signal.SIGKILL)
                        timed_out = True
                    yield _line({"event": "keepalive"})
                    continue
                if not piece:
                    open_streams -= 1
                    continue
                data = base64.b64encode(piece).decode()
                yield _line({"event": stream, "offset": offsets[stream], "data": data})
                offsets[stream] += len(piece)
        status = await process.wait()
        end: Json = {"kind": "exited", "code": status} if status >= 0 else {"kind": "signaled", "signal": -status}
        if timed_out:
            end = {"kind": "timed-out", "after_s": timeout_s}
        yield _line({"event": "end", "end": end, "duration_ms": 2.5, "cpu_ms": 1.5, "peak_memory_mib": None})
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)


@contextlib.contextmanager
def serve(socket_path: Path, folder: Path) -> Iterator[FakeDaemon]:
    """Serve until the block ends."""
    fake = FakeDaemon(folder)
    config = uvicorn.Config(fake.app(), lifespan="off", log_config=None, timeout_graceful_shutdown=1)
    server = uvicorn.Server(config)
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
        listener.bind(str(socket_path))
        listener.listen(64)
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
        thread.start()
        try:
            yield fake
        finally:
            server.should_exit = True
            thread.join(10)
            socket_path.unlink(missing_ok=True)
    assert not thread.is_alive()
