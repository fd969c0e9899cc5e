"""The next start: what is found is removed, told and ended on record; what cannot be removed is told and kept."""

from __future__ import annotations

import json
import os
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import anyio
import pytest
from tests.databases import open_new

from casemate import audit
from casemate.errors import HostError, ImageBroken
from casemate.sandbox import Recovered, SandboxInfo, State, StateReason, Sweeper, new_id, recover
from casemate.sandbox.index import Index
from casemate.sandbox.meta import write_meta
from casemate.sandbox.resuming import adopted
from casemate.sandbox.suspended import Suspended

INFO = SandboxInfo(
    id="", tenant="t", name=None, image="python@1", snapshot="s", state=State.RUNNING, isolation="emulated",
    accelerator="tcg", vcpus=1, memory_mib=512, disk_mib=64, labels={}, created_at=1.0, updated_at=2.0,
    idle_timeout_s=None, on_idle="kill", max_duration_s=None, network="none", attached=False, pid=7,
)  # fmt: skip


@dataclass
class World:
    index: Index
    folders: Path
    trail: audit.Trail

    def left(self, **changes: object) -> SandboxInfo:
        info = replace(INFO, id=new_id(), **changes)  # type: ignore[arg-type]
        (self.folders / info.id).mkdir()
        write_meta(self.folders / info.id, info)
        return info

    async def recover(self, sweepers: Mapping[str, Sweeper] | None = None, **found: object) -> Recovered:
        recovered = Recovered(**found)  # type: ignore[arg-type]
        await recover(recovered, sweepers or {}, self.index, self.folders, self.trail)
        return recovered

    async def reasons(self) -> dict[str, str]:
        found = {i.id: i for i in await self.index.listed("t")}
        assert {i.state for i in found.values()} <= {State.TERMINATED}
        return {i: info.state_reason.code for i, info in found.items() if info.state_reason}


@pytest.fixture
def world(tmp_path: Path) -> Callable[[], object]:
    @asynccontextmanager
    async def opened() -> AsyncIterator[World]:
        (tmp_path / "sandboxes").mkdir()
        database = open_new(tmp_path / "casemate.db")
        try:
            yield World(Index(database, "h"), tmp_path / "sandboxes", audit.Trail(database, "h"))
        finally:
            database.close()

    return opened


@pytest.mark.parametrize("what", ["nothing", "fifo", "link", "folder", "deep", "long", "no record"])
def test_whatever_has_become_of_a_suspended_one_it_is_kept_for_its_user(world: Callable, what: str) -> None:
    """Also where it is of no use any more: a resume says so, and a kill removes it."""

    async def main() -> None:
        async with world() as w:
            info = w.left(state=State.SUSPENDED, pid=None)
            await w.index.put(info)
            folder = w.folders / info.id / "suspended"
            folder.mkdir()
            manifest = folder / "manifest.json"
            match what:
                case "fifo":
                    os.mkfifo(manifest)
                case "link":
                    manifest.symlink_to("/dev/zero")
                case "folder":
                    manifest.mkdir()
                case "deep":
                    manifest.write_text('{"a":' * 100_000)
                case "long":
                    with manifest.open("wb") as file:
                        file.truncate(1 << 40)
                case "no record":
                    (w.folders / info.id / "meta.json").unlink()
            found = Recovered()
            (kept,) = await recover(found, {}, w.index, w.folders, w.trail)
            assert (kept.id, kept.state) == (info.id, State.SUSPENDED)
            assert folder.exists()
            handle = adopted(kept, w.folders)
            assert handle.info.id == info.id
            with pytest.raises(ImageBroken):
                Suspended.read(w.folders / info.id)

    anyio.run(main)


def test_a_name_that_two_have_keeps_no_daemon_from_starting(world: Callable) -> None:
    async def main() -> None:
        async with world() as w:
            infos = [w.left(state=State.SUSPENDED, pid=None, name="db") for _ in range(2)]
            for info in infos:
                (w.folders / info.id / "suspended").mkdir()
            kept = await recover(Recovered(), {}, w.index, w.folders, w.trail)
            assert {info.id for info in kept} == {info.id for info in infos}
            assert {info.name for info in kept} == {"db", None}

    anyio.run(main)


def test_each_end_has_the_reason_that_is_known(world: Callable) -> None:
    async def main() -> None:
        async with world() as w:
            ran, killed, rebooted = (
                w.left(),
                w.left(state=State.TERMINATING, state_reason=StateReason("killed", "by its user")),
                w.left(),
            )
            path = w.folders / rebooted.id / "meta.json"
            path.write_text(json.dumps(json.loads(path.read_text()) | {"boot_id": "another"}))
            only_a_row = replace(INFO, id=new_id())
            await w.index.put(only_a_row)
            (w.folders / "debris").write_text("not even a folder")
            told = (await w.recover()).to_json()
            ids = {ran.id, killed.id, rebooted.id, only_a_row.id}
            assert await w.reasons() == {
                ran.id: "daemon-died", killed.id: "killed", rebooted.id: "host-rebooted", only_a_row.id: "daemon-died"
            }  # fmt: skip
            assert set(told["sandboxes"]) == ids
            assert set(told["folders"]) == ids - {only_a_row.id} | {"debris"}
            assert list(w.folders.iterdir()) == []
            events = await w.trail.listed("t")
            assert {e.subject for e in events if e.event == "sandbox.terminated"} == ids
            (started,) = await w.trail.listed("system")
            assert started.detail["recovered"] == told
            assert (await w.recover()).to_json() == {}

    anyio.run(main)


def test_a_sweeper_that_fails_is_told_and_stops_nobody(world: Callable) -> None:
    async def main() -> None:
        async def fails() -> Sequence[str]:
            raise HostError("a group that is busy")

        async def finds() -> Sequence[str]:
            return ["one"]

        async with world() as w:
            info = w.left()
            told = (await w.recover({"cgroups": fails, "jails": finds})).to_json()
            assert told["failed"] == {"cgroups": "a group that is busy"}
            assert told["jails"] == ["one"]
            assert told["folders"] == [info.id]

    anyio.run(main)


def test_what_a_living_machine_stands_on_is_kept(world: Callable) -> None:
    async def main() -> None:
        async with world() as w:
            lives, gone = w.left(), w.left()
            told = (await w.recover(alive={lives.id}, failed={"processes": "one"})).to_json()
            assert told["folders"] == [gone.id]
            assert [p.name for p in w.folders.iterdir()] == [lives.id]

    anyio.run(main)
