"""Somebody changed what is stored of a suspended sandbox: refused, by name, before a VMM gets any of it."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import anyio
import pytest
from sandbox_world import TENANT, World, open_world

from casemate import errors
from casemate.sandbox import Handle, SandboxSpec, State, starting
from casemate.sandbox.suspended import MAX_MANIFEST, PARTS

Attack = Callable[[Path, Path], None]  # on what is stored of one, given what is stored of another


def swap(name: str) -> Attack:
    def attack(mine: Path, other: Path) -> None:
        aside = mine / "aside"
        (mine / name).rename(aside)
        (other / name).rename(mine / name)
        aside.rename(other / name)

    return attack


def swap_folders(mine: Path, other: Path) -> None:
    aside = mine.parent / "aside"
    mine.rename(aside)
    other.rename(mine)
    aside.rename(other)


def edit(name: str) -> Attack:
    def attack(mine: Path, _: Path) -> None:
        with (mine / name).open("r+b") as file:
            first = file.read(1)
            file.seek(0)
            file.write(bytes([first[0] ^ 1]))

    return attack


def truncate(name: str) -> Attack:
    return lambda mine, _: os.truncate(mine / name, (mine / name).stat().st_size - 1)


def lengthen(name: str) -> Attack:
    return lambda mine, _: os.truncate(mine / name, (mine / name).stat().st_size + 1)


def remove(name: str) -> Attack:
    return lambda mine, _: (mine / name).unlink()


def link_to_the_same(name: str) -> Attack:
    """The bytes are right, for now: whose file it is, is not."""

    def attack(mine: Path, _: Path) -> None:
        shutil.move(mine / name, mine.parent.parent / "elsewhere")
        (mine / name).symlink_to(mine.parent.parent / "elsewhere")

    return attack


def link_the_folder(mine: Path, _: Path) -> None:
    shutil.move(mine, mine.parent.parent / "elsewhere")
    mine.symlink_to(mine.parent.parent / "elsewhere")


def fifo(name: str) -> Attack:
    def attack(mine: Path, _: Path) -> None:
        (mine / name).unlink()
        os.mkfifo(mine / name)

    return attack


def folder(name: str) -> Attack:
    def attack(mine: Path, _: Path) -> None:
        (mine / name).unlink()
        (mine / name).mkdir()

    return attack


def say(**changes: object) -> Attack:
    """The manifest says something else, under the MAC that it had."""

    def attack(mine: Path, _: Path) -> None:
        body = json.loads((mine / "manifest.json").read_text())
        (mine / "manifest.json").write_text(json.dumps(body | changes))

    return attack


def take_over(mine: Path, other: Path) -> None:
    """All of another's, with its name and its tenant's replaced by mine."""
    body, theirs = (json.loads((p / "manifest.json").read_text()) for p in (mine, other))
    swap_folders(mine, other)
    renamed = theirs | {"id": body["id"], "tenant": body["tenant"]}
    (mine / "manifest.json").write_text(json.dumps(renamed))


def agree(mine: Path, _: Path) -> None:
    """Another device state, and a manifest with its digest."""
    import hashlib

    body = json.loads((mine / "manifest.json").read_text())
    (mine / "state").write_bytes(b"evil")
    body["digests"]["state"] = hashlib.sha256(b"evil").hexdigest()
    (mine / "manifest.json").write_text(json.dumps(body))


def nest(mine: Path, _: Path) -> None:
    (mine / "manifest.json").write_text('{"a":' * 100_000 + "1" + "}" * 100_000)


def swell(mine: Path, _: Path) -> None:
    text = (mine / "manifest.json").read_text()
    (mine / "manifest.json").write_text(text + " " * MAX_MANIFEST + "x")


FILES = (*PARTS, "manifest.json")
ATTACKS: dict[str, Attack] = {
    **{f"swap {name}": swap(name) for name in FILES},
    **{f"edit {name}": edit(name) for name in FILES},
    **{f"truncate {name}": truncate(name) for name in FILES},
    **{f"lengthen {name}": lengthen(name) for name in FILES},
    **{f"remove {name}": remove(name) for name in FILES},
    **{f"link {name}": link_to_the_same(name) for name in FILES},
    **{f"fifo {name}": fifo(name) for name in FILES},
    **{f"folder {name}": folder(name) for name in FILES},
    "swap the folders": swap_folders,
    "link the folder": link_the_folder,
    "take over": take_over,
    "agree": agree,
    "nest": nest,
    "swell": swell,
    "another tenant": say(tenant="mallory"),
    "another snapshot": say(snapshot="t"),
    "another base": say(base="1" * 64),
    "another image": say(image="evil@1"),
    "another format": say(format=2),
    "no MAC": say(mac=""),
    "a MAC that is no text": say(mac=1),
    "more than there is": say(more=1),
    "digests that are none": say(digests=None),
    "a number there is not": say(generation=float("nan")),
}


async def rested(world: World, tenant: str) -> tuple[Handle, Path]:
    handle = await world.sandboxes.create(tenant, SandboxSpec("python"))
    (world.folders / handle.info.id / "disk").write_bytes(f"what {handle.info.id} has written".encode())
    await handle.suspend()
    return handle, world.folders / handle.info.id / "suspended"


@pytest.mark.timeout(30)
@pytest.mark.parametrize("others_tenant", [TENANT, "another"])
@pytest.mark.parametrize("name", ATTACKS)
def test_it_is_refused_and_stays_suspended(
    tmp_path: Path, name: str, others_tenant: str, no_trace: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(starting, "SPARE_DISK_MIB", 0)

    async def main() -> None:
        async with open_world(tmp_path) as world:
            (mine, my_folder), (theirs, their_folder) = await rested(world, TENANT), await rested(world, others_tenant)
            ATTACKS[name](my_folder, their_folder)
            before = world.driver.restores
            with pytest.raises((errors.SealBroken, errors.ImageBroken)):
                await mine.resume()
            assert world.driver.restores == before
            assert mine.info.state is State.SUSPENDED
            assert (await mine.kill()).state is State.TERMINATED
            assert not my_folder.parent.exists()
            if "swap" not in name and name != "take over":  # the other's is as it was
                assert (await theirs.resume()).state is State.RUNNING

    anyio.run(main)


def test_what_is_untouched_is_resumed(tmp_path: Path, no_trace: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(starting, "SPARE_DISK_MIB", 0)

    async def main() -> None:
        async with open_world(tmp_path) as world:
            mine, _ = await rested(world, TENANT)
            before = world.driver.restores
            await mine.resume()
            assert world.driver.restores == before + 1

    anyio.run(main)
