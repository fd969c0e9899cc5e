"""What goes, what stays, and who is asked first."""

from __future__ import annotations

import asyncio
from pathlib import Path

import anyio
import pytest
from tests.unit.build.build_world import DEFAULT, TENANT, WIDE, World, open_world

from casemate import errors
from casemate.sandbox import Snapshot

pytestmark = [pytest.mark.anyio, pytest.mark.usefixtures("no_trace")]


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


async def snapshot_of(world: World, ref: str = "python") -> Snapshot:
    async with world.images.snapshot_for(TENANT, ref, DEFAULT) as snapshot:
        return snapshot


def kinds(report: dict[str, object]) -> list[str]:
    return sorted(item["kind"] for item in report["removed"])  # type: ignore[index, attr-defined]


async def test_a_version_goes_with_its_snapshots_and_its_own_files(tmp_path: Path) -> None:
    async with open_world(tmp_path) as world:
        first = await world.import_image(content=b"root 1")
        old = await snapshot_of(world)
        second = await world.import_image(content=b"root 2")
        kept = await snapshot_of(world)
        with pytest.raises(errors.StateConflict, match="python@2 is what 'python' means"):
            await world.images.remove(TENANT, "python", False)
        report = await world.images.remove(TENANT, "python@1", False)
        assert kinds(report) == ["artifact", "snapshot", "version"]
        assert report["size_bytes"] > 1_000_000
        assert not old.folder.exists()
        assert kept.folder.exists()
        assert not world.bench.store.has(first.artifacts["root"])
        assert all(world.bench.store.has(second.artifacts[part]) for part in ("kernel", "initrd", "root"))
        with pytest.raises(errors.NotFound):
            await world.images.get(TENANT, "python@1")
        await snapshot_of(world)


async def test_the_active_one_goes_by_force_and_the_newest_left_takes_its_place(tmp_path: Path) -> None:
    async with open_world(tmp_path) as world:
        await world.import_image(content=b"root 1")
        await world.import_image(content=b"root 2")
        await world.images.remove(TENANT, "python", True)
        assert (await world.images.get(TENANT, "python"))["version"] == 1
        await world.images.remove(TENANT, "python", True)
        with pytest.raises(errors.NotFound):
            await world.images.get(TENANT, "python")
        assert world.bench.store.digests() == []
        again = await world.import_image(content=b"root 3")
        assert again.number == 3  # a number is never given twice: python@2 is not suddenly something else


async def test_what_sandboxes_stand_on_stays_and_they_are_named(tmp_path: Path) -> None:
    async with open_world(tmp_path) as world:
        await world.import_image()
        snapshot = await snapshot_of(world)
        await world.stand_on(snapshot.id, "alpha")
        await world.stand_on(snapshot.id, "beta", state="suspended")
        with pytest.raises(errors.StateConflict, match="in use by 2 sandboxes: alpha, beta") as refused:
            await world.images.remove(TENANT, "python", True)
        assert refused.value.evidence == {"sandboxes": ["alpha", "beta"]}
        assert snapshot.folder.exists()
        await snapshot_of(world)


async def test_what_a_pool_keeps_ready_stays_and_nobody_is_told_to_kill_what_cannot_be_reached(tmp_path: Path) -> None:
    async with open_world(tmp_path) as world:
        await world.import_image()
        snapshot = await snapshot_of(world)
        await world.stand_on(snapshot.id, "ready-one", state="ready")
        with pytest.raises(errors.StateConflict, match="kept ready by a pool") as refused:
            await world.images.remove(TENANT, "python", True)
        assert "pool ls" in refused.value.hint
        await world.stand_on(snapshot.id, "alpha")
        with pytest.raises(errors.StateConflict, match="in use by 1 sandbox: alpha"):
            await world.images.remove(TENANT, "python", True)


async def test_what_is_just_being_started_stays(tmp_path: Path) -> None:
    async with open_world(tmp_path) as world:
        await world.import_image()
        async with world.images.snapshot_for(TENANT, "python", DEFAULT) as snapshot:
            with pytest.raises(errors.StateConflict, match="just being used"):
                await world.images.remove(TENANT, "python", True)
            assert (await world.images.prune(TENANT, False))["removed"] == []
            assert snapshot.folder.exists()
        await world.images.remove(TENANT, "python", True)


async def test_what_is_being_built_is_not_removed_under_the_builder(tmp_path: Path) -> None:
    async with open_world(tmp_path) as world, anyio.create_task_group() as tasks:
        await world.import_image()
        world.driver.gate = anyio.Event()
        tasks.start_soon(snapshot_of, world)
        while not world.driver.boots:
            await asyncio.sleep(0.005)
        with pytest.raises(errors.StateConflict, match="is being built"):
            await world.images.remove(TENANT, "python", True)
        assert (await world.images.prune(TENANT, False))["removed"] == []
        world.driver.gate.set()


async def test_others_may_use_ours_but_not_remove_it(tmp_path: Path) -> None:
    async with open_world(tmp_path) as world:
        version = await world.import_image()
        assert version.tenant == TENANT
        with pytest.raises(errors.NotFound):
            await world.images.remove("somebody", "python", True)
        with pytest.raises(errors.Forbidden):
            await world.images.prune("somebody", True)


async def test_prune_takes_what_nothing_needs_and_says_so_before(tmp_path: Path) -> None:
    async with open_world(tmp_path) as world:
        await world.import_image(content=b"root 1")
        used_old = await snapshot_of(world)
        await world.stand_on(used_old.id, "work")  # keeps version 1
        await world.import_image(content=b"root 2")
        unused_old = await snapshot_of(world)
        await world.import_image(content=b"root 3")
        current = await snapshot_of(world)
        async with world.images.snapshot_for(TENANT, "python", WIDE):
            pass
        with world.bench.store.new() as pending:
            pending.path.write_bytes(b"nobody's")
        orphan = world.host.snapshots / "left-over"
        orphan.mkdir()
        (orphan / "memory").write_bytes(b"x" * 8192)

        planned = await world.images.prune(TENANT, True)
        assert planned["dry_run"] is True
        assert unused_old.folder.exists()
        assert orphan.exists()
        done = await world.images.prune(TENANT, False)
        assert done["removed"] == planned["removed"]
        assert done["size_bytes"] == planned["size_bytes"] > 1_000_000
        assert kinds(done) == ["artifact", "artifact", "leftover", "snapshot", "version"]
        assert not unused_old.folder.exists()
        assert not orphan.exists()
        assert not world.bench.store.has(pending.digest)
        assert used_old.folder.exists()
        assert current.folder.exists()
        left = await world.images.list(TENANT)
        assert [image["version"] for image in left] == [1, 3]
        assert [len(image["snapshots"]) for image in left] == [1, 2]
        assert (await world.images.prune(TENANT, False))["removed"] == []
        await snapshot_of(world)
        assert world.driver.boots == 4  # nothing that fits was lost


async def test_prune_takes_snapshots_that_fit_no_more(tmp_path: Path) -> None:
    async with open_world(tmp_path) as world:
        await world.import_image()
        snapshot = await snapshot_of(world)
    async with open_world(tmp_path) as world:
        world.bench.agent_content = b"agent 2"
        report = await world.images.prune(TENANT, False)
        assert kinds(report) == ["artifact", "snapshot"]  # and the agent disk of yesterday with it
        assert not snapshot.folder.exists()


async def test_verify_finds_a_changed_file_and_the_next_create_does_not_use_it(tmp_path: Path) -> None:
    async with open_world(tmp_path) as world:
        version = await world.import_image()
        snapshot = await snapshot_of(world)
        assert (await world.images.verify(TENANT, "python", world.tell))["ok"] is True
        assert len(world.said) == 6
        for path in (snapshot.folder / "memory", world.bench.store.path(version.artifacts["kernel"])):
            path.chmod(0o644)
            with path.open("r+b") as file:
                file.write(b"changed")
        report = await world.images.verify(TENANT, "python", world.tell)
        assert [f["file"] for f in report["files"] if not f["ok"]] == ["kernel", f"snapshot {snapshot.id} memory"]
        assert (await snapshot_of(world)).id != snapshot.id


@pytest.mark.parametrize("dry_run", [True, False])
async def test_what_goes_of_one_tenant_is_not_what_another_calls_the_same(tmp_path: Path, dry_run: bool) -> None:
    async with open_world(tmp_path) as world:
        theirs = await world.import_image("work", b"their root", tenant="other")
        old = await world.import_image("work", b"old root")
        await world.import_image("work", b"new root")
        gone = (await world.images.prune(TENANT, dry_run))["removed"]
        assert {item["name"] for item in gone} == {old.reference, old.artifacts["root"]}
        assert theirs.reference == old.reference
        assert world.bench.store.has(theirs.artifacts["root"])
