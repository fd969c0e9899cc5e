"""What is kept of sandboxes: named, used in its own shape alone, let go when nobody stands on it."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import anyio
import anyio.lowlevel
import pytest
from tests.unit.build.build_world import DEFAULT, TENANT, WIDE, World, open_world
from tests.unit.build.keeping import OneSandbox, nothing

from casemate import errors
from casemate.audit import Trail
from casemate.build import Ground
from casemate.build.host import BUILT_IN
from casemate.build.sessions import Sessions
from casemate.build.users import Users
from casemate.sandbox import Shape
from casemate.storage import PoolRow, VersionRow, images, pools

pytestmark = [pytest.mark.anyio, pytest.mark.usefixtures("no_trace")]


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


async def keep(world: World, name: str = "work", tag: str | None = None, **of: Any) -> dict[str, Any]:
    sandbox = OneSandbox(world, **of)
    return await world.images.keep(sandbox.tenant, "sandbox", name, tag, sandboxes=sandbox, actor="key")


def folders(world: World) -> list[str]:
    return sorted(path.name for path in world.host.snapshots.iterdir())


def names(report: dict[str, Any], kind: str) -> list[str]:
    return [item["name"] for item in report["removed"] if item["kind"] == kind]


async def events(world: World) -> list[str]:
    return [event.event for event in await Trail(world.database, "host").newest(TENANT, limit=50)]


async def test_it_is_a_version_of_its_name_with_a_parent_and_runs_in_its_own_shape(tmp_path: Path) -> None:
    async with open_world(tmp_path) as world:
        python = await world.import_image()
        own = Shape(2, 96, 32)
        kept = await keep(world, tag="good", shape=own)
        assert (kept["name"], kept["version"], kept["tag"], kept["state"], kept["active"]) == (
            "work", 1, "good", "ready", True,
        )  # fmt: skip
        assert (kept["parent"], kept["contains_session_state"], kept["users"]) == ("python@1", True, [])
        assert (kept["vcpus"], kept["memory_mib"], kept["disk_mib"]) == (2, 96, 32)
        assert (kept["pause_ms"], kept["frozen_ms"], kept["took_ms"]) == (12.5, 30.0, 400.0)
        assert 4096 < kept["own_bytes"] < 200_000  # what it takes, not how long its files are
        assert kept["shared_bytes"] > 0
        for ref in ("work", "work@1", "work:good", "work:latest"):
            assert await world.images.shape_for(TENANT, ref, None, 96, None) == own
            async with world.images.snapshot_for(TENANT, ref, own) as snapshot:
                assert (snapshot.image, snapshot.is_session, snapshot.tenant) == ("work@1", True, TENANT)
        assert world.driver.boots == 0
        digest = f"sha256:{python.artifacts['root'][:12]}"
        assert (await world.images.version(TENANT, digest)).reference == "python@1"
        whole = await world.images.sessions.get(TENANT, "work")
        assert (whole["misfits"], whole["broken"], whole["parent_sandbox"]) == ([], None, "sandbox")
        assert (await world.images.sessions.get(TENANT, kept["snapshot"]))["name"] == "work"


async def test_its_parent_is_what_it_stands_on_whatever_has_that_name_by_now(tmp_path: Path) -> None:
    async with open_world(tmp_path) as world:
        ours = await world.import_image(tenant=BUILT_IN)
        async with world.images.snapshot_for(TENANT, "python", DEFAULT) as snapshot:
            pass
        mine = await world.import_image()
        another = partial(images.update_version, artifacts={**mine.artifacts, "kernel": "0" * 64})
        await world.database.write(another, mine.id)
        await keep(world, snapshot=snapshot.id)
        assert (await world.images.version(TENANT, "work")).artifacts["kernel"] == ours.artifacts["kernel"]


@pytest.mark.parametrize("written_down", [BUILT_IN, TENANT, None])
async def test_a_forks_parent_is_whose_its_image_is(tmp_path: Path, written_down: str | None) -> None:
    """The snapshot it stands on has no row; and who made it may have had no word for that yet."""
    async with open_world(tmp_path) as world:
        ours = await world.import_image(tenant=BUILT_IN)
        mine = await world.import_image()
        assert ours.reference == mine.reference
        another = partial(images.update_version, artifacts={**mine.artifacts, "kernel": "0" * 64})
        await world.database.write(another, mine.id)
        await keep(world, snapshot="of-a-fork", image_tenant=written_down)
        kernel = (await world.images.version(TENANT, "work")).artifacts["kernel"]
        assert kernel == (ours.artifacts["kernel"] if written_down == BUILT_IN else "0" * 64)


async def test_a_fork_holds_only_the_image_it_has(tmp_path: Path) -> None:
    async with open_world(tmp_path) as world:
        await world.import_image(tenant=BUILT_IN)
        await world.import_image()
        await world.stand_on("of-a-fork", "copy", image_tenant=BUILT_IN)
        await world.images.remove(TENANT, "python@1", True)


async def test_what_a_cold_boot_needs_is_whose_its_image_is(tmp_path: Path) -> None:
    async with open_world(tmp_path) as world:
        ours = await world.import_image(tenant=BUILT_IN, content=b"root of ours")
        mine = await world.import_image(content=b"root of mine")
        ground = Ground(world.host, world.images.shapes)
        for owners, found in (((BUILT_IN,), ours), ((TENANT, BUILT_IN), mine), (("else", BUILT_IN), ours)):
            assert (await ground.kit(owners, "python@1")).root.name == found.artifacts["root"]
        with pytest.raises(errors.NotFound, match="python@1"):
            await ground.kit(("else",), "python@1")


async def test_it_has_no_other_shape_and_is_never_built(tmp_path: Path) -> None:
    async with open_world(tmp_path) as world:
        await world.import_image()
        await keep(world)
        with pytest.raises(errors.InvalidSpec, match="it has no other shape"):
            await world.images.shape_for(TENANT, "work", 2, None, None)
        with pytest.raises(errors.InvalidSpec, match="it has no other shape"):
            async with world.images.snapshot_for(TENANT, "work", WIDE):
                pass
        with pytest.raises(errors.InvalidSpec, match="snapshots export work@1"):
            async with world.images.export(TENANT, "work"):
                pass
        assert world.driver.boots == 0
        assert await world.images.shape_for(TENANT, "python", 2, None, None) == WIDE


async def test_a_tag_moves_and_the_name_means_the_newest(tmp_path: Path) -> None:
    async with open_world(tmp_path) as world:
        await world.import_image()
        for content in (b"first", b"second"):
            await keep(world, tag="good", content=content)
        await keep(world, content=b"third")
        tags = [(one["version"], one["tag"], one["active"]) for one in await world.images.sessions.listed(TENANT)]
        assert tags == [(1, None, False), (2, "good", False), (3, None, True)]
        with pytest.raises(errors.NotFound):
            await world.images.version(TENANT, "work:bad")


async def test_it_is_its_tenants_alone(tmp_path: Path) -> None:
    async with open_world(tmp_path) as world:
        await world.import_image()
        kept = await keep(world)
        for ref in ("work", "work@1", kept["snapshot"]):
            with pytest.raises(errors.NotFound):
                await world.images.sessions.get("somebody", ref)
            with pytest.raises(errors.NotFound):
                await world.images.sessions.remove("somebody", ref, actor="key")
            with pytest.raises(errors.NotFound):
                await world.images.shape_for("somebody", ref, None, None, None)
        assert await world.images.sessions.listed("somebody") == []
        assert (await world.images.sessions.prune("somebody", dry_run=False, actor="key"))["removed"] == []


async def test_the_hosts_owner_removes_by_id_what_he_cannot_name(tmp_path: Path) -> None:
    async with open_world(tmp_path) as world:
        await world.import_image()
        theirs = await keep(world, tenant="somebody")
        sessions = world.images.sessions
        with pytest.raises(errors.NotFound):
            await sessions.get(TENANT, theirs["snapshot"])
        for ref, anybodys in (("work", True), (theirs["snapshot"], False)):
            with pytest.raises(errors.NotFound):
                await sessions.remove(TENANT, ref, anybodys=anybodys, actor="key")
        report = await sessions.prune(TENANT, everybodys=True, dry_run=True, actor="key")
        assert report["removed"] == []  # it is what its name means
        await sessions.remove(TENANT, theirs["snapshot"], anybodys=True, actor="key")
        assert await sessions.listed("somebody") == []
        assert folders(world) == []


@pytest.mark.parametrize("name", ["python", "python-full", "Work", "../x", "prune", ""])
async def test_what_it_cannot_be_called(tmp_path: Path, name: str) -> None:
    async with open_world(tmp_path) as world:
        await world.import_image()
        with pytest.raises(errors.InvalidSpec):
            await keep(world, name)
        for tag in ("latest", "", "a b"):
            with pytest.raises(errors.InvalidSpec):
                await keep(world, "work", tag)
        assert await world.images.sessions.listed(TENANT) == []


@pytest.mark.parametrize("where", ["before", "after"])
async def test_a_failed_one_says_so_and_leaves_nothing(tmp_path: Path, where: str) -> None:
    async def fails() -> None:
        raise errors.HostFull("no room")

    async with open_world(tmp_path) as world:
        await world.import_image()
        with pytest.raises(errors.HostFull):
            await keep(world, tag="good", **{where: fails})
        (shown,) = await world.images.sessions.listed(TENANT)
        assert (shown["state"], shown["why"], shown["active"], shown["tag"]) == ("failed", "no room", False, None)
        assert folders(world) == []
        with pytest.raises(errors.NotFound):
            await world.images.version(TENANT, "work")
        assert (await keep(world))["version"] == 2
        report = await world.images.sessions.prune(TENANT, dry_run=False, actor="key")
        assert names(report, "version") == ["work@1"]


@pytest.mark.parametrize("where", ["before", "after"])
async def test_one_whose_client_leaves_leaves_nothing(tmp_path: Path, where: str) -> None:
    async with open_world(tmp_path) as world:
        await world.import_image()
        async with anyio.create_task_group() as tasks:

            async def leaves() -> None:
                tasks.cancel_scope.cancel()
                await anyio.lowlevel.checkpoint()

            tasks.start_soon(partial(keep, world, **{where: leaves}))
        (shown,) = await world.images.sessions.listed(TENANT)
        assert shown["state"] == "failed"
        assert folders(world) == []


async def test_it_is_kept_from_one_moment_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """When its name means it. A client that leaves later finds it."""
    async with open_world(tmp_path) as world:
        await world.import_image()
        describe = world.images.sessions.describe
        async with anyio.create_task_group() as tasks:

            async def left(version: VersionRow, users: Users | None = None) -> dict[str, Any]:
                tasks.cancel_scope.cancel()
                return await describe(version, users)

            monkeypatch.setattr(world.images.sessions, "describe", left)
            tasks.start_soon(partial(keep, world, tag="good"))
        monkeypatch.undo()
        (shown,) = await world.images.sessions.listed(TENANT)
        assert (shown["state"], shown["active"], shown["tag"]) == ("ready", True, "good")
        async with world.images.snapshot_for(TENANT, "work", DEFAULT) as snapshot:
            assert folders(world) == [snapshot.id]


async def test_what_a_daemon_that_died_had_begun_is_gone_at_the_next_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with open_world(tmp_path) as world:
        await world.import_image()

        async def dies() -> None:
            assert len(folders(world)) == 1  # it has its name already
            with pytest.raises(errors.StateConflict, match="being made"):
                await world.images.sessions.remove(TENANT, "work@1", actor="key")
            with pytest.raises(errors.StateConflict, match="not kept, or not yet"):
                await world.images.shape_for(TENANT, "work@1", None, None, None)
            assert (await world.images.prune(TENANT, False))["removed"] == []
            raise ConnectionError

        with monkeypatch.context() as patch:
            patch.setattr(Sessions, "give_up", lambda *_: nothing())
            with pytest.raises(ConnectionError):
                await keep(world, after=dies)
        assert len(folders(world)) == 1
    async with open_world(tmp_path) as world:
        assert folders(world) == []
        assert [one["state"] for one in await world.images.sessions.listed(TENANT)] == ["failed"]


async def test_what_stands_on_it_is_named(tmp_path: Path) -> None:
    async with open_world(tmp_path) as world:
        await world.import_image()
        kept = await keep(world)
        await world.stand_on(kept["snapshot"], "alpha")
        await world.stand_on(kept["snapshot"], "beta", state="suspended")
        with pytest.raises(errors.StateConflict, match="in use by 2 sandboxes: alpha, beta"):
            await world.images.sessions.remove(TENANT, "work", actor="key")
        users = (await world.images.sessions.get(TENANT, "work"))["users"]
        assert [(one["kind"], one["name"], one["state"]) for one in users] == [
            ("sandbox", "alpha", "running"), ("sandbox", "beta", "suspended"),
        ]  # fmt: skip
        await keep(world)  # the first is not active any more
        assert (await world.images.sessions.prune(TENANT, dry_run=False, actor="key"))["removed"] == []


async def test_a_pool_of_it_is_named(tmp_path: Path) -> None:
    async with open_world(tmp_path) as world:
        await world.import_image()
        await keep(world, tag="good")
        row = PoolRow(
            id="the-pool", tenant=TENANT, host_id="host", image="work:good", vcpus=1, memory_mib=128, disk_mib=64,
            network="none", min_ready=1, max_ready=None, target_utilization=1.0, schedule=None, origin="api",
            created_at=1.0, updated_at=1.0,
        )  # fmt: skip
        await world.database.write(pools.put, row)
        with pytest.raises(errors.StateConflict, match="what pool the-pool is made of") as refused:
            await world.images.sessions.remove(TENANT, "work", actor="key")
        assert refused.value.hint == "casemate pool rm the-pool"
        await world.database.write(pools.remove, "the-pool")
        report = await world.images.sessions.remove(TENANT, "work", actor="key")
        assert names(report, "version") == ["work@1"]
        assert folders(world) == []
        assert "snapshot.removed" in await events(world)


async def test_what_forks_stand_on_is_not_the_prunings_to_remove(tmp_path: Path) -> None:
    """It goes with the last copy; and for as long the disks it was made with stay, whatever becomes of the image."""
    async with open_world(tmp_path) as world:
        await world.import_image()
        template = await OneSandbox(world, kind="fork").written("a-template", "python@1")
        await world.images.remove(TENANT, "python", True)
        assert (await world.images.prune(TENANT, False))["removed"] == []
        assert template.folder.is_dir()
        assert all(disk.is_file() for disk in (template.root, template.agent))


async def test_a_copy_keeps_the_version_it_came_from(tmp_path: Path) -> None:
    """It stands on a snapshot of its own, and on the kernel and the disks of its version all the same."""
    async with open_world(tmp_path) as world:
        await world.import_image(content=b"root 1")
        await world.stand_on("a-template", "copy")
        await world.import_image(content=b"root 2")
        assert (await world.images.prune(TENANT, False))["removed"] == []
        with pytest.raises(errors.StateConflict, match="in use by 1 sandbox: copy"):
            await world.images.remove(TENANT, "python@1", True)


async def test_removed_as_an_image_it_is_on_record_too(tmp_path: Path) -> None:
    async with open_world(tmp_path) as world:
        await world.import_image()
        await keep(world)
        with pytest.raises(errors.StateConflict, match="is what 'work' means"):
            await world.images.remove(TENANT, "work", False)
        await world.images.remove(TENANT, "work", True, actor="key")
        assert folders(world) == []
        assert "snapshot.removed" in await events(world)


async def test_prune_takes_what_neither_name_nor_tag_means(tmp_path: Path) -> None:
    async with open_world(tmp_path) as world:
        await world.import_image()
        for number, tag in enumerate((None, "good", None, None)):
            await keep(world, tag=tag, content=b"content %d" % number)
        planned = await world.images.sessions.prune(TENANT, dry_run=True, actor="key")
        assert names(planned, "version") == ["work@1", "work@3"]
        assert len(folders(world)) == 4
        done = await world.images.sessions.prune(TENANT, dry_run=False, actor="key")
        assert done["removed"] == planned["removed"]
        assert done["size_bytes"] == planned["size_bytes"] > 0
        assert [one["version"] for one in await world.images.sessions.listed(TENANT)] == [2, 4]
        assert len(folders(world)) == 2
        assert (await events(world)).count("snapshot.removed") == 2


async def test_nothing_else_deletes_it(tmp_path: Path) -> None:
    """Neither a budget nor the pruning of images nor a new VMM: nobody could make it again."""
    async with open_world(tmp_path, shape_budget_mib=0) as world:
        await world.import_image()
        await keep(world, content=b"first", shape=Shape(2, 96, 32))
        await keep(world, content=b"second")
        await world.images.shapes.prune_over_budget()
        world.driver.now = replace(world.driver.now, vmm_sha256="1" * 64)
        world.bench.agent_content = b"agent 2"
        await world.images.upkeep.run()
        await world.images.prune(TENANT, False)
        assert len(folders(world)) == 2
        with pytest.raises(errors.Unfit, match="work@2 cannot be restored here: it was made by 1"):
            async with world.images.snapshot_for(TENANT, "work", DEFAULT):
                pass
        assert "it was made by 1" in (await world.images.sessions.get(TENANT, "work"))["misfits"][0]
        kept_build = world.host.vmm_builds / ("0" * 64) / "usr"
        kept_build.mkdir(parents=True)
        async with world.images.snapshot_for(TENANT, "work", DEFAULT) as snapshot:  # the agent it has is still there
            assert snapshot.image == "work@2"


async def test_what_was_changed_is_not_given_to_a_vmm(tmp_path: Path) -> None:
    async with open_world(tmp_path) as world:
        await world.import_image()
        kept = await keep(world)
        memory = world.host.snapshots / kept["snapshot"] / "memory"
        memory.chmod(0o644)
        with memory.open("r+b") as file:
            file.seek(70 << 20)
            file.write(b"changed")
        with pytest.raises(errors.ImageBroken, match="work@1 is not whole"):
            async with world.images.snapshot_for(TENANT, "work", DEFAULT):
                pass
        report = await world.images.verify(TENANT, "work", world.tell)
        assert [file["file"] for file in report["files"] if not file["ok"]] == [f"snapshot {kept['snapshot']} memory"]
        assert len(folders(world)) == 1


async def test_the_newest_is_what_a_name_means_whichever_is_done_last(tmp_path: Path) -> None:
    async with open_world(tmp_path) as world:
        await world.import_image()

        async def another_is_faster() -> None:
            assert (await keep(world, tag="good"))["version"] == 2

        assert (await keep(world, tag="good", before=another_is_faster))["version"] == 1
        assert (await world.images.version(TENANT, "work")).number == 2
        assert (await world.images.version(TENANT, "work:good")).number == 2
        assert [one["state"] for one in await world.images.sessions.listed(TENANT)] == ["ready", "ready"]


async def test_one_that_cannot_be_removed_says_why_it_failed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def fails() -> None:
        raise errors.HostFull("no room")

    def refuse(_: Path) -> None:
        raise OSError(5, "the disk is broken")

    async with open_world(tmp_path) as world:
        await world.import_image()
        monkeypatch.setattr("casemate.build.sessions.remove_folder", refuse)
        with pytest.raises(errors.HostFull):
            await keep(world, after=fails)
        (shown,) = await world.images.sessions.listed(TENANT)
        assert (shown["state"], shown["why"]) == ("failed", "no room")
        left = folders(world)
        assert names(await world.images.prune(TENANT, False), "leftover") == left


async def test_what_was_removed_is_gone_whenever_its_daemon_dies(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def dies(_: Path) -> None:
        raise ConnectionError

    async with open_world(tmp_path) as world:
        await world.import_image()
        await keep(world)
        with monkeypatch.context() as patch:
            patch.setattr("casemate.build.shapes.remove_folder", dies)
            with pytest.raises(ConnectionError):
                await world.images.sessions.remove(TENANT, "work", actor="key")
        assert len(folders(world)) == 1
    async with open_world(tmp_path) as world:
        assert folders(world) == []
        for one in await world.images.sessions.listed(TENANT):
            await world.images.sessions.remove(TENANT, f"work@{one['version']}", actor="key")
