"""An upgrade of what machines run on: rebuilt once, the old one kept until the new one answers, and all of it said."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import anyio
import pytest
from tests.fakes.fake_vmm import PLATFORM
from tests.unit.build.build_world import DEFAULT, TENANT, WIDE, World, open_world

from casemate import errors
from casemate.build import Ground
from casemate.build.host import BUILT_IN
from casemate.sandbox import Shape, Snapshot
from casemate.vmm import Platform

pytestmark = [pytest.mark.anyio, pytest.mark.usefixtures("no_trace")]
UPGRADED = replace(PLATFORM, version="2", vmm_sha256="1" * 64)


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


async def borrow(world: World, shape: Shape = DEFAULT, **more: Any) -> Snapshot:
    async with world.images.snapshot_for(TENANT, "python", shape, **more) as snapshot:
        return snapshot


async def until(condition: object) -> None:
    with anyio.fail_after(10):
        while not condition():  # type: ignore[operator]
            await anyio.sleep(0.005)


async def build_two(home: Path) -> list[Snapshot]:
    async with open_world(home) as world:
        await world.import_image()
        return [await borrow(world), await borrow(world, WIDE)]


def report(home: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((home / "run" / "upkeep.json").read_bytes())
    return found


def suspend(home: Path, sandbox: str, snapshot: Snapshot, **changes: object) -> Path:
    """What a suspend leaves, as far as fitness looks at it."""
    folder = home / "sandboxes" / sandbox / "suspended"
    folder.mkdir(parents=True)
    body: Mapping[str, Any] = snapshot.made.to_json() | {"mac": "not looked at here"} | changes
    (folder / "manifest.json").write_text(json.dumps(body))
    return folder


def keep_build(home: Path, platform: Platform) -> Path:
    folder = home / "vmm" / platform.vmm_sha256
    (folder / "usr" / "bin").mkdir(parents=True)
    (folder / "usr" / "bin" / "vmm").write_bytes(b"x" * 9000)
    return folder


async def test_nothing_is_built_where_all_fits(tmp_path: Path) -> None:
    await build_two(tmp_path)
    async with open_world(tmp_path) as world:
        await world.images.upkeep.run()
        assert world.driver.boots == 0
    assert (report(tmp_path)["rebuilding"], report(tmp_path)["failed"]) == ([], [])


async def test_nothing_is_built_on_a_host_that_never_built(tmp_path: Path) -> None:
    async with open_world(tmp_path) as world:
        await world.import_image()
        await world.images.upkeep.run()
        assert world.driver.boots == 0


@pytest.mark.parametrize(
    "now",
    [
        UPGRADED,
        replace(PLATFORM, machine="another line"),
        replace(PLATFORM, cpu_features="a c"),
        replace(PLATFORM, tsc_khz=1),
    ],
)
async def test_each_shape_is_rebuilt_once_and_the_old_ones_go(tmp_path: Path, now: Platform) -> None:
    old = await build_two(tmp_path)
    async with open_world(tmp_path) as world:
        world.driver.now = now
        await world.images.upkeep.run()
        assert world.driver.boots == 2
        assert world.driver.restored[0][1].startswith(b"state")  # each was proven by a clone
        assert len(world.driver.restored) == 2
        for shape, before in zip((DEFAULT, WIDE), old, strict=True):
            got = await borrow(world, shape, build=False)
            assert (got.platform, got.id != before.id) == (now, True)
            assert not before.folder.exists()
        await world.images.upkeep.run()
        assert world.driver.boots == 2


async def test_another_agent_disk_is_an_upgrade_too(tmp_path: Path) -> None:
    (old, _) = await build_two(tmp_path)
    async with open_world(tmp_path) as world:
        world.bench.agent_content = b"agent 2"
        await world.images.upkeep.run()
        assert (await borrow(world, build=False)).agent != old.agent


async def test_the_old_one_stays_until_a_clone_of_the_new_one_has_answered(tmp_path: Path) -> None:
    (old, _) = await build_two(tmp_path)
    async with open_world(tmp_path) as world, anyio.create_task_group() as tasks:
        world.driver.now, world.driver.restore_gate = UPGRADED, anyio.Event()
        tasks.start_soon(world.images.upkeep.run)
        await until(lambda: world.driver.restored)
        assert old.folder.is_dir()
        assert [p.name for p in world.host.snapshots.glob("[!.]*")].count(old.id) == 1
        (image,) = await world.images.list(TENANT)
        assert [(r["state"], r["step"]) for r in image["rebuilds"]] == [("rebuilding", "prove")]
        assert "installed is 2" in image["rebuilds"][0]["why"]
        assert len(world.images.upkeep.to_json()["rebuilding"]) == 1
        world.driver.restore_gate.set()
        await until(lambda: not old.folder.exists())
    (image,) = await describe(tmp_path)
    assert image["rebuilds"] == []


async def describe(home: Path) -> list[dict[str, Any]]:
    async with open_world(home) as world:
        return await world.images.list(TENANT)


async def test_one_whose_clone_does_not_answer_replaces_nothing(tmp_path: Path) -> None:
    (old, _) = await build_two(tmp_path)
    async with open_world(tmp_path) as world:
        world.driver.now, world.driver.refuse_restore = UPGRADED, errors.VmmRefused("it cannot load that")
        await world.images.upkeep.run()
        assert old.folder.is_dir()
        assert len(list(world.host.snapshots.iterdir())) == 2  # the two old ones, nothing of the new ones
        failed = world.images.upkeep.to_json()["failed"]
        assert [(one["image"], one["error"]) for one in failed] == [("python@1", "it cannot load that")] * 2
        assert report(tmp_path)["failed"] == failed
        boots = world.driver.boots
        await anyio.sleep(0.05)
        assert world.driver.boots == boots  # once per daemon

        world.driver.refuse_restore = None
        assert (await borrow(world)).platform == UPGRADED  # the next create tries again
        assert not old.folder.exists()
        await until(lambda: [one["shape"][:6] for one in report(tmp_path)["failed"]] == ["2 vCPU"])
        assert [one["state"] for one in (await world.images.list(TENANT))[0]["rebuilds"]] == ["failed"]


async def test_who_creates_meanwhile_waits_for_the_same_build_and_is_told(tmp_path: Path) -> None:
    await build_two(tmp_path)
    async with open_world(tmp_path) as world, anyio.create_task_group() as tasks:
        world.driver.now, world.driver.gate = UPGRADED, anyio.Event()
        tasks.start_soon(world.images.upkeep.run)
        await until(lambda: world.driver.boots)
        got: list[Snapshot] = []

        async def create() -> None:
            got.append(await borrow(world, progress=world.tell))

        for _ in range(5):
            tasks.start_soon(create)
        await until(lambda: len(world.said) == 5)
        world.driver.gate.set()
        await until(lambda: len(got) == 5)
        assert len({snapshot.id for snapshot in got}) == 1
        assert world.said.count("done") == 5
        await until(lambda: not world.images.shapes.building)
        assert world.driver.boots == 2  # one a shape


async def test_what_a_sandbox_stands_on_is_kept_beside_its_successor(tmp_path: Path) -> None:
    (old, _) = await build_two(tmp_path)
    async with open_world(tmp_path) as world:
        await world.stand_on(old.id, "asleep", state="suspended")
        world.driver.now = UPGRADED
        await world.images.upkeep.run()
        await world.images.prune("local", dry_run=False)
        assert old.folder.is_dir()
        assert (await borrow(world, build=False)).platform == UPGRADED


async def test_a_version_that_is_not_active_waits_until_somebody_wants_it(tmp_path: Path) -> None:
    await build_two(tmp_path)
    async with open_world(tmp_path) as world:
        await world.import_image(content=b"root 2")
        world.driver.now = UPGRADED
        await world.images.upkeep.run()
        assert world.driver.boots == 0


async def test_a_host_without_a_vmm_is_no_reason_not_to_start(tmp_path: Path) -> None:
    await build_two(tmp_path)
    async with open_world(tmp_path) as world:

        async def missing() -> Platform:
            raise errors.ToolMissing("no QEMU")

        world.driver.platform = missing  # type: ignore[method-assign]
        await world.images.upkeep.run()


# ------------------------------------------------------------------------- suspended sandboxes, builds of the VMM


async def test_it_says_which_suspended_sandboxes_the_installed_vmm_cannot_restore(tmp_path: Path) -> None:
    (old, _) = await build_two(tmp_path)
    suspend(tmp_path, "asis", replace(old, platform=UPGRADED))
    suspend(tmp_path, "kept", old)
    suspend(tmp_path, "lost", replace(old, platform=replace(PLATFORM, vmm_sha256="7" * 64)))
    suspend(tmp_path, "nodisk", replace(old, platform=UPGRADED, root=tmp_path / "gone"))
    (suspend(tmp_path, "torn", old) / "manifest.json").write_text("{")
    keep_build(tmp_path, PLATFORM)
    async with open_world(tmp_path) as world:
        world.driver.now = UPGRADED
        await world.images.upkeep.run()
        said = {one["sandbox"]: one for one in world.images.upkeep.to_json()["suspended"]}
    assert {name: one["kept"] for name, one in said.items()} == {
        "kept": True,
        "lost": False,
        "nodisk": False,
        "torn": False,
    }
    assert "installed is 2" in said["kept"]["why"]
    assert said["kept"]["remedy"] == ""
    assert "resume --cold" in said["lost"]["remedy"]
    assert "root disk" in said["nodisk"]["why"]
    assert "cannot be read" in said["torn"]["why"]
    assert report(tmp_path)["suspended"] == list(said.values())


async def test_health_names_nothing_of_a_tenants(tmp_path: Path) -> None:
    """Any key may read it; the image here is a tenant's own."""
    (old, _) = await build_two(tmp_path)
    suspend(tmp_path, "lost", replace(old, platform=replace(PLATFORM, vmm_sha256="7" * 64)))
    async with open_world(tmp_path) as world:
        world.driver.now, world.driver.refuse_restore = UPGRADED, errors.VmmRefused("no")
        await world.images.upkeep.run()
        assert world.images.upkeep.for_everybody() == {
            "rebuilding": [],
            "failed": [],
            "rebuilding_in_all": 0,
            "failed_in_all": 2,
            "suspended": {"restored_by_kept_vmm": 0, "not_restorable": 1},
        }


async def test_health_names_what_is_everybodys_and_not_a_tenants_of_the_same_name(tmp_path: Path) -> None:
    await build_two(tmp_path)
    async with open_world(tmp_path) as world:
        await world.import_image(tenant=BUILT_IN, content=b"root of ours")
        async with world.images.snapshot_for("else", "python", DEFAULT):
            pass
        world.driver.now, world.driver.refuse_restore = UPGRADED, errors.VmmRefused("no")
        await world.images.upkeep.run()
        health = world.images.upkeep.for_everybody()
        assert (len(health["failed"]), health["failed_in_all"], health["rebuilding"]) == (1, 3, [])
        assert health["failed"][0]["image"] == "python@1"


async def test_what_is_suspended_gets_the_snapshot_it_stands_on_though_that_fits_no_more(tmp_path: Path) -> None:
    (old, _) = await build_two(tmp_path)
    async with open_world(tmp_path) as world:
        await world.stand_on(old.id, "asleep", state="suspended")
        world.driver.now = UPGRADED
        await world.images.upkeep.run()
        ground = Ground(world.host, world.images.shapes)
        assert await ground.snapshot(TENANT, old.id) == old
        await world.images.prune("local", dry_run=False)
        assert old.folder.is_dir()
        with pytest.raises(errors.SealBroken):
            await ground.snapshot("mallory", old.id)
        (old.folder / "memory").chmod(0o644)
        (old.folder / "memory").write_bytes(b"another memory")
        with pytest.raises(errors.ImageBroken, match="not whole"):
            await ground.snapshot(TENANT, old.id)
        await world.stand_on(old.id, "asleep", state="terminated")
        await world.images.prune("local", dry_run=False)
        with pytest.raises(errors.ImageBroken, match="cannot be read"):
            await ground.snapshot(TENANT, old.id)


async def test_a_build_of_the_vmm_stays_as_long_as_something_was_made_with_it(tmp_path: Path) -> None:
    (old, wide) = await build_two(tmp_path)
    asleep = suspend(tmp_path, "asleep", replace(old, platform=replace(PLATFORM, vmm_sha256="7" * 64)))
    builds = {name: keep_build(tmp_path, replace(PLATFORM, vmm_sha256=name * 64)) for name in "0179"}
    (tmp_path / "vmm" / "current.json").write_text("{}")
    async with open_world(tmp_path) as world:
        world.driver.now = UPGRADED
        await world.stand_on(old.id, "running")

        async def pruned(*, dry_run: bool) -> list[str]:
            gone = await world.images.prune("local", dry_run=dry_run)
            return [item["name"][0] for item in gone["removed"] if item["kind"] == "vmm"]

        assert await pruned(dry_run=True) == ["9"]
        assert builds["9"].is_dir()
        assert await pruned(dry_run=False) == ["9"]  # 0: a sandbox stands on its snapshot; 1: installed; 7: suspended
        assert [path.is_dir() for path in builds.values()] == [True, True, True, False]
        assert not wide.folder.exists()
        (asleep / "manifest.json").unlink()
        await world.stand_on(old.id, "running", state="terminated")
        assert await pruned(dry_run=True) == ["0", "7"]
        assert await pruned(dry_run=False) == ["0", "7"]
        assert await pruned(dry_run=False) == []
        assert sorted(p.name for p in (tmp_path / "vmm").iterdir()) == ["1" * 64, "current.json"]


async def test_so_does_one_of_firecracker(tmp_path: Path) -> None:
    """Whichever VMM machines run under: the one that is installed stays, and so does what a suspended sandbox needs."""
    (old, _) = await build_two(tmp_path)
    asleep = suspend(tmp_path, "asleep", replace(old, platform=replace(PLATFORM, vmm_sha256="b" * 64)))
    for name in "abc":
        (folder := tmp_path / "vmm" / (name * 64)).mkdir()
        (folder / "firecracker").write_bytes(b"x" * 9000)
    (tmp_path / "vmm" / "firecracker.json").write_text(json.dumps({"sha256": "a" * 64}))
    async with open_world(tmp_path) as world:
        assert set((await world.host.here(old.made)).kept_vmms) == {name * 64 for name in "abc"}

        async def kept() -> list[str]:
            await world.images.prune("local", dry_run=False)
            return sorted(path.name[0] for path in (tmp_path / "vmm").iterdir() if path.is_dir())

        assert await kept() == ["a", "b"]
        (asleep / "manifest.json").unlink()
        assert await kept() == ["a"]
        world.driver.now = replace(PLATFORM, vmm="firecracker", vmm_sha256="a" * 64)
        (tmp_path / "vmm" / "current.json").write_text(json.dumps({"sha256": "d" * 64}))  # QEMU's, to go back to
        (tmp_path / "vmm" / ("d" * 64) / "usr").mkdir(parents=True)
        (tmp_path / "vmm" / "firecracker.json").unlink()
        assert await kept() == ["a", "d"]  # what a daemon runs with it does not take away


async def test_the_disks_of_what_is_suspended_are_not_pruned(tmp_path: Path) -> None:
    (old, _) = await build_two(tmp_path)
    suspend(tmp_path, "asleep", old)
    async with open_world(tmp_path) as world:
        world.bench.agent_content = b"agent 2"
        await world.images.upkeep.run()
        await world.images.prune("local", dry_run=False)
        assert old.agent.is_file()
