"""Attacks on what is stored: of none of it a VMM gets a byte."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tests.unit.build.build_world import DEFAULT, TENANT, WIDE, World, open_world

from casemate import errors
from casemate.sandbox import Shape, Snapshot, open_seal

pytestmark = [pytest.mark.anyio, pytest.mark.usefixtures("no_trace")]


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


async def borrow(world: World, shape: Shape = DEFAULT, image: str = "python") -> Snapshot:
    async with world.images.snapshot_for(TENANT, image, shape) as snapshot:
        return snapshot


def overwrite(path: Path, content: bytes) -> None:
    """As an attacker who is root would, also keeping size and time."""
    before = path.stat()
    path.chmod(0o644)
    path.write_bytes(content)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    path.chmod(0o444)


def edit(folder: Path, **changes: Any) -> None:
    body = json.loads((folder / "manifest.json").read_bytes()) | changes
    overwrite(folder / "manifest.json", json.dumps(body).encode())


def sealed_body(mine: Snapshot) -> dict[str, Any]:
    body: dict[str, Any] = json.loads((mine.folder / "manifest.json").read_bytes())
    del body["mac"]
    return body


def swap_state(mine: Snapshot, theirs: Snapshot) -> None:
    overwrite(mine.folder / "state", (theirs.folder / "state").read_bytes() + b"evil")


def swap_state_and_say_so(mine: Snapshot, theirs: Snapshot) -> None:
    overwrite(mine.folder / "state", b"another valid state")
    edit(mine.folder, digests={**mine.digests, "state": hashlib.sha256(b"another valid state").hexdigest()})


def swap_everything(mine: Snapshot, theirs: Snapshot) -> None:
    for name in ("memory", "state", "disk", "manifest.json"):
        overwrite(mine.folder / name, (theirs.folder / name).read_bytes())


def swap_everything_under_my_name(mine: Snapshot, theirs: Snapshot) -> None:
    swap_everything(mine, theirs)
    edit(mine.folder, id=mine.id, image=mine.image)


def edit_memory(mine: Snapshot, theirs: Snapshot) -> None:
    memory = bytearray((mine.folder / "memory").read_bytes())
    memory[4096] ^= 1
    overwrite(mine.folder / "memory", bytes(memory))


def edit_disk(mine: Snapshot, theirs: Snapshot) -> None:
    overwrite(mine.folder / "disk", b"another disk")


def edit_kernel(mine: Snapshot, theirs: Snapshot) -> None:
    edit(mine.folder, kernel_release="6.99")


def drop_mac(mine: Snapshot, theirs: Snapshot) -> None:
    edit(mine.folder, mac=None)


def take_mac(mine: Snapshot, theirs: Snapshot) -> None:
    edit(mine.folder, mac=json.loads((theirs.folder / "manifest.json").read_bytes())["mac"])


def other_key(mine: Snapshot, theirs: Snapshot) -> None:
    elsewhere = mine.folder.parent.parent / "elsewhere"
    (elsewhere / "seal").mkdir(parents=True)
    edit(mine.folder, mac=mine.manifest(open_seal(elsewhere))["mac"])


def other_kind(mine: Snapshot, theirs: Snapshot) -> None:
    body = sealed_body(mine)
    seal = open_seal(mine.folder.parent.parent)
    edit(mine.folder, mac=seal.over(mine.tenant, "suspended-sandbox", body))


def other_tenant(mine: Snapshot, theirs: Snapshot) -> None:
    """A tenant's own good snapshot, sealed by this host, put in another's place."""
    body = sealed_body(mine)
    body["tenant"] = "mallory"
    seal = open_seal(mine.folder.parent.parent)
    edit(mine.folder, tenant="mallory", mac=seal.over("mallory", "image-snapshot", body))


def cut_off(mine: Snapshot, theirs: Snapshot) -> None:
    overwrite(mine.folder / "manifest.json", (mine.folder / "manifest.json").read_bytes()[:-9])


def remove_state(mine: Snapshot, theirs: Snapshot) -> None:
    (mine.folder / "state").unlink()


ATTACKS = [
    swap_state, swap_state_and_say_so, swap_everything, swap_everything_under_my_name, edit_memory, edit_disk,
    edit_kernel, drop_mac, take_mac, other_key, other_kind, other_tenant, cut_off, remove_state,
]  # fmt: skip


@pytest.mark.parametrize("restarted", [False, True], ids=["same-daemon", "next-daemon"])
@pytest.mark.parametrize("attack", ATTACKS)
async def test_what_was_touched_is_built_again_and_never_lent(
    tmp_path: Path, attack: Callable[[Snapshot, Snapshot], None], restarted: bool
) -> None:
    async with open_world(tmp_path) as world:
        await world.import_image()
        mine, theirs = await borrow(world), await borrow(world, WIDE)
        if not restarted:
            attack(mine, theirs)
            assert (await borrow(world)).id not in (mine.id, theirs.id)
            assert world.driver.boots == 3
            return
    attack(mine, theirs)
    async with open_world(tmp_path) as world:
        got = await borrow(world)
        assert got.id not in (mine.id, theirs.id)
        assert world.driver.boots == 1
        assert len(world.driver.restored) == 1  # the proof of the new one
        assert not mine.folder.exists()


async def test_what_was_not_touched_is_lent_by_the_next_daemon(tmp_path: Path) -> None:
    async with open_world(tmp_path) as world:
        await world.import_image()
        mine = await borrow(world)
    async with open_world(tmp_path) as world:
        assert await borrow(world) == mine
        assert world.driver.boots == 0


async def test_a_copy_under_another_name_is_no_snapshot(tmp_path: Path) -> None:
    async with open_world(tmp_path) as world:
        await world.import_image()
        mine = await borrow(world)
        copy = mine.folder.with_name("copy")
        shutil.copytree(mine.folder, copy)
        with pytest.raises(errors.SealBroken, match="snapshot copy was not sealed by this host"):
            Snapshot.read(copy, world.host.seal, tenant=TENANT)


async def test_an_older_format_is_built_again(tmp_path: Path) -> None:
    async with open_world(tmp_path) as world:
        await world.import_image()
        mine = await borrow(world)
        edit(mine.folder, format=1)
        with pytest.raises(errors.ImageBroken, match="it has format 1, this version 2"):
            Snapshot.read(mine.folder, world.host.seal, tenant=TENANT)
        assert (await borrow(world)).id != mine.id


async def test_verify_says_which_snapshot_is_not_ours(tmp_path: Path) -> None:
    async with open_world(tmp_path) as world:
        await world.import_image()
        edit((await borrow(world)).folder, mac="0" * 64)
        report = await world.images.verify(TENANT, "python", world.tell)
        assert not report["ok"]
        assert any("not sealed by this host" in file["why"] for file in report["files"])


async def test_a_manifest_says_what_it_was_made_with(tmp_path: Path) -> None:
    async with open_world(tmp_path) as world:
        await world.import_image()
        body = json.loads(((await borrow(world)).folder / "manifest.json").read_bytes())
        assert body.keys() == {
            *("format", "id", "image", "tenant", "shape", "digests", "mac"),
            *("platform", "kernel_release", "generation", "root", "agent"),
        }
        assert {"vmm_sha256", "machine", "cpu", "cpu_features", "tsc_khz", "version"} <= body["platform"].keys()
