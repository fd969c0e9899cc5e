"""An image from one host to another: whole, or not at all."""

from __future__ import annotations

import hashlib
import os
from collections.abc import AsyncIterator
from pathlib import Path

import anyio
import pytest
from tests.unit.build.build_world import DEFAULT, TENANT, World, open_world

from casemate import errors
from casemate.build import transfer

pytestmark = [pytest.mark.anyio, pytest.mark.usefixtures("no_trace")]
ROOT = os.urandom(3_000_000)


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


async def exported(world: World) -> bytes:
    async with world.images.export(TENANT, "python") as (size_bytes, pieces):
        data = b"".join([piece async for piece in pieces])
    assert len(data) == size_bytes
    return data


async def in_pieces(data: bytes, size_bytes: int = 100_000) -> AsyncIterator[bytes]:
    for start in range(0, len(data), size_bytes):
        yield data[start : start + size_bytes]


async def a_bundle(folder: Path) -> bytes:
    async with open_world(folder) as world:
        await world.import_image(content=ROOT)
        return await exported(world)


def stored(world: World) -> set[str]:
    return {p.name for p in world.bench.store.root.iterdir()} - {".lock", ".verified", ".index"}


async def test_it_arrives_and_starts(tmp_path: Path) -> None:
    data = await a_bundle(tmp_path / "there")
    async with open_world(tmp_path / "here") as world:
        image = await world.images.receive(TENANT, None, in_pieces(data))
        assert (image["name"], image["version"], image["active"], image["state"]) == ("python", 1, True, "ready")
        assert image["artifacts"]["root"] == hashlib.sha256(ROOT).hexdigest()
        assert image["config"] == {"user": "user", "cwd": "/home/user"}
        assert await exported(world) == data
        async with world.images.snapshot_for(TENANT, f"sha256:{image['digest'][:12]}", DEFAULT) as snapshot:
            assert snapshot.image == "python@1"


async def test_under_another_name_and_twice(tmp_path: Path) -> None:
    data = await a_bundle(tmp_path / "there")
    async with open_world(tmp_path / "here") as world:
        for _ in range(2):
            assert (await world.images.receive(TENANT, "theirs", in_pieces(data)))["version"] == 1
        with pytest.raises(errors.InvalidSpec):
            await world.images.receive(TENANT, "../x", in_pieces(data))
        assert [image["name"] for image in await world.images.list(TENANT)] == ["theirs"]


async def test_many_at_once(tmp_path: Path) -> None:
    data = await a_bundle(tmp_path / "there")
    async with open_world(tmp_path / "here") as world:
        async with anyio.create_task_group() as tasks:
            for n in range(6):
                tasks.start_soon(world.images.receive, TENANT, f"image-{n % 3}", in_pieces(data, 10_000 + n))
        listed = [(image["name"], image["version"]) for image in await world.images.list(TENANT)]
        assert listed == [("image-0", 1), ("image-1", 1), ("image-2", 1)]
        assert len(stored(world)) == 3
        world.bench.store.verify(hashlib.sha256(ROOT).hexdigest())


async def test_one_that_is_broken_off_leaves_nothing(tmp_path: Path) -> None:
    data = await a_bundle(tmp_path / "there")
    async with open_world(tmp_path / "here") as world:
        for cut in (0, 100, 3000, len(data) // 2, len(data) - 1):
            with pytest.raises(errors.InvalidSpec, match="stops before its end"):
                await world.images.receive(TENANT, None, in_pieces(data[:cut]))
            assert stored(world) == set()
        assert await world.images.list(TENANT) == []


async def test_one_that_is_cancelled_leaves_nothing(tmp_path: Path) -> None:
    data = await a_bundle(tmp_path / "there")
    async with open_world(tmp_path / "here") as world:
        waiting = anyio.Event()

        async def stalls() -> AsyncIterator[bytes]:
            yield data[: len(data) // 2]
            waiting.set()
            await anyio.sleep_forever()

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(world.images.receive, TENANT, None, stalls())
            await waiting.wait()
            tasks.cancel_scope.cancel()
        assert stored(world) == set()


async def test_a_client_that_stalls_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transfer, "PIECE_LIMIT_S", 0.1)
    data = await a_bundle(tmp_path / "there")

    async def stalls() -> AsyncIterator[bytes]:
        yield data[:1000]
        await anyio.sleep_forever()

    async with open_world(tmp_path / "here") as world:
        with anyio.fail_after(5), pytest.raises(errors.RequestError, match="nothing came"):
            await world.images.receive(TENANT, None, stalls())
        assert stored(world) == set()


async def test_a_flood_that_is_no_image_is_refused_at_its_start(tmp_path: Path) -> None:
    sent = 0

    async def flood() -> AsyncIterator[bytes]:
        nonlocal sent
        while True:
            sent += 1
            yield b"\xff" * 1_000_000

    async with open_world(tmp_path / "here") as world:
        with anyio.fail_after(10), pytest.raises(errors.InvalidSpec):
            await world.images.receive(TENANT, None, flood())
    assert sent < 20


async def test_a_broken_artifact_is_not_exported(tmp_path: Path) -> None:
    async with open_world(tmp_path) as world:
        version = await world.import_image(content=ROOT)
        path = world.bench.store.path(version.artifacts["root"])
        path.chmod(0o644)
        path.write_bytes(b"changed")
        with pytest.raises(errors.ImageBroken):
            await exported(world)
