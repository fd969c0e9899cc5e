"""The host's disk is full, to the last page or nearly: typed errors, nothing left, served again when there is room."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import anyio
import pytest
from sandbox_world import TENANT, World, open_world

from casemate.errors import HostFull
from casemate.sandbox import Amount, SandboxSpec, State, starting

SIZE_MIB = 8


@pytest.fixture
def small(tmp_path: Path) -> Iterator[Path]:
    if os.geteuid() != 0:
        pytest.skip("only root can mount a disk that is soon full")
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={SIZE_MIB}m,mode=0700", "tmpfs", tmp_path], check=True)
    try:
        yield tmp_path
    finally:
        subprocess.run(["umount", "--lazy", tmp_path], check=True)


def fill(folder: Path, leave_kib: int) -> Path:
    filler, free = folder / "filler", os.statvfs(folder)
    filler.write_bytes(bytes(free.f_bavail * free.f_frsize - (leave_kib << 10)))
    return filler


async def one_life(world: World) -> None:
    handle = await world.sandboxes.create(TENANT, SandboxSpec("python", name="mine"))
    assert (await world.sandboxes.kill(TENANT, "mine")).id == handle.info.id


@pytest.mark.parametrize("leave_kib", [0, 4, 8, 12, 16, 24, 32, 48, 64, 96])
def test_nothing_stays_of_a_create_that_finds_no_room(
    small: Path, leave_kib: int, no_trace: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(starting, "SPARE_DISK_MIB", 0)  # it would be refused before it begins

    async def main() -> None:
        async with open_world(small) as world:
            await one_life(world)
            filler = fill(small, leave_kib)
            refused = None
            try:
                await one_life(world)
            except HostFull as error:
                refused = error.message
            assert refused is not None or leave_kib > 0
            assert refused is None or "full" in refused or "no space" in refused, refused
            assert await world.sandboxes.list(TENANT) == []
            assert list(world.folders.iterdir()) == []
            assert world.admission.reserved == Amount(0, 0)
            filler.unlink()
            await one_life(world)
            assert await world.index.unfinished() == []
            assert {i.state for i in await world.sandboxes.list(TENANT, include_terminated=True)} == {State.TERMINATED}

    anyio.run(main)


def test_what_runs_when_it_fills_up_can_be_ended_and_its_name_had_again(small: Path, no_trace: None) -> None:
    async def main() -> None:
        starting_spare, starting.SPARE_DISK_MIB = starting.SPARE_DISK_MIB, 0
        try:
            async with open_world(small) as world:
                await world.sandboxes.create(TENANT, SandboxSpec("python", name="mine"))
                filler = fill(small, 0)
                ended = await world.sandboxes.kill(TENANT, "mine")
                assert ended.state is State.TERMINATED
                assert list(world.folders.iterdir()) == []
                filler.unlink()
                await one_life(world)
                assert await world.index.unfinished() == []
        finally:
            starting.SPARE_DISK_MIB = starting_spare

    anyio.run(main)


def test_it_does_not_begin_where_too_little_is_free(small: Path, no_trace: None) -> None:
    async def main() -> None:
        async with open_world(small) as world:
            with pytest.raises(HostFull, match=r"MiB are free .* needs 64") as raised:
                await one_life(world)
            assert raised.value.evidence["retry_after_s"] > 0
            assert list(world.folders.iterdir()) == []

    anyio.run(main)
