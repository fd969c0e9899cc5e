"""What was kept of a sandbox, from one host to another: whole, as it was meant, or not at all."""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import tarfile
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import anyio
import pytest
from tests.unit.build.build_world import DEFAULT, TENANT, World, open_world
from tests.unit.build.keeping import OneSandbox
from tests.unit.build.test_transfer import in_pieces

from casemate import errors
from casemate.build import session_bundle as bundles
from casemate.build.session_bundle import Manifest

pytestmark = [pytest.mark.anyio, pytest.mark.usefixtures("no_trace")]


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


async def exported(world: World, ref: str = "work", *, base: bool = True) -> bytes:
    async with world.images.carriage.export(TENANT, ref, base=base, actor="key") as (size_bytes, pieces):
        data = b"".join([piece async for piece in pieces])
    assert len(data) == size_bytes
    return data


async def a_bundle(folder: Path, *, base: bool = True) -> bytes:
    async with open_world(folder) as world:
        await world.import_image()
        sandbox = OneSandbox(world)
        await world.images.keep(TENANT, "sandbox", "work", "good", sandboxes=sandbox, actor="key")
        return await exported(world, base=base)


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


async def received(world: World, data: bytes, *, said: str = "", name: str | None = None) -> dict[str, Any]:
    return await world.images.carriage.receive(TENANT, name, said or sha256(data), in_pieces(data), actor="key")


def traces(world: World) -> list[str]:
    store = {p.name for p in world.bench.store.root.iterdir()} - {".lock", ".verified", ".index"}
    return sorted([*store, *(path.name for path in world.host.snapshots.iterdir())])


async def test_it_arrives_and_is_this_hosts_own(tmp_path: Path) -> None:
    data = await a_bundle(tmp_path / "there")
    assert len(data) < 2_000_000  # holes do not travel: its files are 192 MiB long
    async with open_world(tmp_path / "here") as world:
        image = await received(world, data)
        assert (image["name"], image["version"], image["tag"], image["parent"], image["active"]) == (
            "work", 1, "good", "python@1", True,
        )  # fmt: skip
        async with world.images.snapshot_for(TENANT, "work:good", DEFAULT) as snapshot:
            assert snapshot.image == "work@1"
            for name, begins in (("memory", b"a variable"), ("disk", b"disk of "), ("state", b"state of ")):
                assert (snapshot.folder / name).read_bytes().startswith(begins)
            assert snapshot.files.memory.stat().st_size == 128 << 20
            assert snapshot.files.memory.stat().st_blocks * 512 < 1 << 20
            assert {path.stat().st_mode & 0o777 for path in snapshot.folder.iterdir()} == {0o444}
        parts = await anyio.to_thread.run_sync(world.host.artifacts, await world.images.version(TENANT, "work"))
        assert parts.kernel.read_bytes() == b"kernel"  # what boots it without its memory came along
        assert (await exported(world)) == data
        again = await received(world, data, name="theirs")
        assert (again["name"], again["version"]) == ("theirs", 1)
        kinds = [event.event for event in await world.host.trail.newest(TENANT, limit=9)]
        assert {"snapshot.imported", "snapshot.exported"} <= set(kinds)
    async with (  # and it outlives the daemon
        open_world(tmp_path / "here") as world,
        world.images.snapshot_for(TENANT, "theirs", DEFAULT) as snapshot,
    ):
        assert snapshot.image == "theirs@1"


async def test_without_its_base_it_needs_one_like_it(tmp_path: Path) -> None:
    whole, slim = await a_bundle(tmp_path / "there"), None
    async with open_world(tmp_path / "there") as world:
        slim = await exported(world, base=False)
    assert len(slim) < len(whole)
    async with open_world(tmp_path / "bare") as world:
        with pytest.raises(errors.Unfit, match="without its kernel, initrd, root, agent"):
            await received(world, slim)
        assert traces(world) == []
    async with open_world(tmp_path / "here") as world:
        await received(world, whole)
        assert (await received(world, slim))["version"] == 2


async def test_another_sha256_than_was_said(tmp_path: Path) -> None:
    data = await a_bundle(tmp_path / "there")
    async with open_world(tmp_path / "here") as world:
        for said in ("0" * 64, "", "sha256:" + sha256(data), sha256(data)[:12]):
            with pytest.raises(errors.InvalidSpec):
                await world.images.carriage.receive(TENANT, None, said, in_pieces(data), actor="key")
            assert traces(world) == []
        assert await world.images.sessions.listed(TENANT) == []


async def test_another_platform_is_refused_with_every_reason(tmp_path: Path) -> None:
    data = await a_bundle(tmp_path / "there")
    async with open_world(tmp_path / "here") as world:
        world.driver.now = replace(world.driver.now, cpu="another", vmm_sha256="1" * 64)
        with pytest.raises(errors.Unfit, match="made with the CPU no CPU, here is another") as refused:
            await received(world, data)
        assert "it was made by 1 (build 000000000000)" in refused.value.message
        assert traces(world) == []


@pytest.mark.parametrize("name", ["python", "../x", "prune"])
async def test_a_name_it_cannot_have(tmp_path: Path, name: str) -> None:
    data = await a_bundle(tmp_path / "there")
    async with open_world(tmp_path / "here") as world:
        with pytest.raises(errors.InvalidSpec):
            await received(world, data, name=name)
        assert traces(world) == []


async def test_one_that_is_cut_or_changed_leaves_nothing(tmp_path: Path) -> None:
    """Also where whoever sent it says the sha256 of what he sent: the digests within are another's."""
    data = await a_bundle(tmp_path / "there")
    async with open_world(tmp_path / "here") as world:
        for cut in (0, 100, 2000, len(data) // 2, len(data) - 1):
            with pytest.raises(errors.InvalidSpec, match="stops before its end"):
                await received(world, data[:cut])
            assert traces(world) == []
        members = {member.name: member for member in _members(data)}
        places = [
            members["memory"].offset_data + 300,  # past the bitmap: 2048 chunks
            members["disk"].offset_data + 200,
            members["state"].offset_data,
            members["memory"].offset_data,  # in the bitmap
            members["memory"].offset + 3,  # in the name
        ]
        for place in places:
            changed = bytearray(data)
            changed[place] ^= 1
            with pytest.raises(errors.InvalidSpec, match="not a snapshot that casemate exported"):
                await received(world, bytes(changed))
            assert traces(world) == []
        assert await world.images.sessions.listed(TENANT) == []


async def test_one_that_is_cancelled_leaves_nothing(tmp_path: Path) -> None:
    data = await a_bundle(tmp_path / "there")
    async with open_world(tmp_path / "here") as world:
        waiting = anyio.Event()

        async def stalls() -> AsyncIterator[bytes]:
            yield data[: len(data) - 3000]
            waiting.set()
            await anyio.sleep_forever()

        async def receive() -> None:
            await world.images.carriage.receive(TENANT, None, sha256(data), stalls(), actor="key")

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(receive)
            await waiting.wait()
            tasks.cancel_scope.cancel()
        assert traces(world) == []


async def test_a_disk_that_fills_while_it_is_entered_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = await a_bundle(tmp_path / "there")
    async with open_world(tmp_path / "here") as world:
        await world.import_image()  # the artifacts are there already
        before = traces(world)

        def full(*_: Any) -> None:
            raise OSError(28, "No space left on device")

        with monkeypatch.context() as patch:
            patch.setattr("casemate.build.session_transfer.write_manifest", full)
            with pytest.raises(errors.HostFull):
                await received(world, data)
        assert [name for name in traces(world) if name not in before] in ([], [world.bench.agent().name])
        assert [one["state"] for one in await world.images.sessions.listed(TENANT)] == ["failed"]


def _members(data: bytes) -> list[tarfile.TarInfo]:
    with tarfile.open(fileobj=io.BytesIO(data)) as tar:
        return tar.getmembers()


def _said(data: bytes) -> dict[str, Any]:
    with tarfile.open(fileobj=io.BytesIO(data)) as tar:
        first = tar.extractfile("casemate-snapshot.json")
        assert first is not None
        body: dict[str, Any] = json.load(first)
        return body


ODD: dict[str, Callable[[dict[str, Any]], object]] = {
    "another format": lambda b: b.update(format=2),
    "one field more": lambda b: b.update(more=1),
    "a name that is a path": lambda b: b.update(name="../x"),
    "a tag with a colour": lambda b: b.update(tag="\x1b[31m"),
    "a parent that is a path": lambda b: b.update(parent="../x"),
    "a huge memory": lambda b: b["shape"].update(memory_mib=1 << 40),
    "no memory": lambda b: b["shape"].update(memory_mib=0),
    "a memory that is no number": lambda b: b["shape"].update(memory_mib="128"),
    "more chunks than there can be": lambda b: b["chunks"].update(memory=1 << 50),
    "fewer chunks than none": lambda b: b["chunks"].update(disk=-1),
    "a long state": lambda b: b.update(state_bytes=1 << 40),
    "a digest that is a path": lambda b: b["digests"].update(memory="../" * 20),
    "no digest of the state": lambda b: b["digests"].pop("state"),
    "another accelerator": lambda b: b["platform"].update(accelerator="magic"),
    "a platform with a newline": lambda b: b["platform"].update(cpu="a\nb"),
    "a platform with more": lambda b: b["platform"].update(more="x"),
    "a build that is a path": lambda b: b["platform"].update(vmm_sha256="../x"),
    "an artifact that is a path": lambda b: b["artifacts"]["root"].update(digest="../" * 20),
    "one artifact less": lambda b: b["artifacts"].pop("agent"),
    "a config of its own": lambda b: b["config"].update(run="rm"),
    "a list": lambda b: b.update(shape=[]),
    "generation true": lambda b: b.update(generation=True),
}


async def test_an_odd_manifest_is_refused(tmp_path: Path) -> None:
    said = _said(await a_bundle(tmp_path))
    assert Manifest.parse(json.dumps(said).encode()).name == "work"
    taken = []
    for what, change in ODD.items():
        body = json.loads(json.dumps(said))
        change(body)
        with contextlib.suppress(errors.InvalidSpec):
            Manifest.parse(json.dumps(body).encode())
            taken.append(what)
    assert taken == []
    for noise in (b"", b"{", b"[" * 60_000, b"[]", b"null", b"\xff" * 100, b'{"format": 1}'):
        with pytest.raises(errors.InvalidSpec):
            Manifest.parse(noise)


def test_the_bitmap_is_of_what_is_there(tmp_path: Path) -> None:
    path = tmp_path / "sparse"
    with path.open("xb") as file:
        file.truncate(64 << 20)
        for chunk in (0, 9, 1023):
            file.seek(chunk * bundles.CHUNK_BYTES + 5000)
            file.write(b"x")
    with path.open("rb") as file:
        bitmap = bundles.bitmap_of(file.fileno())
    assert len(bitmap) == 128
    assert bundles.count(bitmap) == 3
    assert (bitmap[0], bitmap[1], bitmap[127]) == (1, 2, 128)
