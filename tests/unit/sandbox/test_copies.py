"""A living sandbox is copied, over a VMM without a machine: what is made, what stays, and what fails where."""

from __future__ import annotations

import errno
import json
import os
import signal
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import anyio
import pytest
from sandbox_world import TENANT, World, open_world
from test_suspend_resume import Failing, answers, following, lone, moments

from casemate import errors
from casemate.host import remove_folder
from casemate.sandbox import Amount, Handle, Seal, Snapshot, State, starting, templates
from casemate.sandbox.plan import Moment, Reach, undone
from casemate.sandbox.spec import MAX_ENV_BYTES
from casemate.sandbox.suspended import Suspended
from casemate.sandbox.taking import plan
from casemate.sandbox.templates import Templates

pytestmark = pytest.mark.usefixtures("each_stream")
STEPS = [step.name for step in plan()]
UNDONE = list(undone(plan()))


@pytest.fixture(autouse=True)
def room_for_little(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(starting, "SPARE_DISK_MIB", 0)


def run(folder: Path, main: Callable[[World], Awaitable[None]], reach: Reach | None = None, room: int = 50) -> None:
    async def live() -> None:
        more = {} if reach is None else {"reach": reach}
        with anyio.fail_after(60):
            async with open_world(folder, room=room, agent_timeout_s=2, **more) as world:  # type: ignore[arg-type]
                await main(world)
        assert list((folder / "snapshots").iterdir()) == []
        assert list((folder / "sandboxes").iterdir()) == []
        assert world.admission.reserved == Amount(0, 0)

    anyio.run(live)


async def kill_all(world: World) -> None:
    for info in await world.sandboxes.list(TENANT):
        await world.sandboxes.kill(TENANT, info.id)


def stored(folder: Path) -> list[str]:
    return sorted(path.name for path in (folder / "snapshots").iterdir())


async def settled(world: World, reserved: Amount) -> None:
    """What somebody else has just let go is given back by its own task."""
    with anyio.fail_after(10):
        while world.admission.reserved != reserved:
            await anyio.sleep(0.001)


def test_copies_run_beside_their_parent(tmp_path: Path, no_trace: None) -> None:
    async def main(world: World) -> None:
        parent = await lone(world, name="first", labels={"a": "1", "b": "1"}, env={"E": "e"}, max_duration_s=600)
        alone, said = world.admission.reserved, list[str]()
        copies = await world.sandboxes.fork(
            TENANT, "first", 3, labels={"b": "2"}, on_progress=lambda step, message, _: said.append(message)
        )
        assert said[-1] == "3 of 3 run"
        assert len({copy.info.id for copy in (parent, *copies)}) == 4
        for copy in copies:
            await answers(copy)
            assert copy.info.state is State.RUNNING
            assert copy.info.forked_from == parent.info.id
            assert copy.info.name is None
            assert copy.info.labels == {"a": "1", "b": "2"}
            assert (copy.spec.env, copy.spec.max_duration_s) == ({"E": "e"}, 600)
            assert copy.info.image == parent.info.image
            assert copy.info.created_at > parent.info.created_at
        await answers(parent)
        (template,) = stored(tmp_path)
        assert {copy.info.snapshot for copy in copies} == {template}
        assert world.sandboxes.templates.is_used(template)
        grandchild = (await world.sandboxes.fork(TENANT, copies[0].info.id, 1))[0]
        await answers(grandchild)
        assert {one.info.image_tenant for one in (parent, *copies, grandchild)} == {"system"}
        for copy in copies:
            await copy.kill()
        assert not world.sandboxes.templates.is_used(template) or await gone(tmp_path, template)
        assert stored(tmp_path) == [grandchild.info.snapshot]
        await grandchild.kill()
        await settled(world, alone)
        assert stored(tmp_path) == []
        await answers(parent)

    run(tmp_path, main)


async def gone(folder: Path, template: str) -> bool:
    with anyio.fail_after(10):
        while any(template in name for name in stored(folder)):  # it is removed under another one
            await anyio.sleep(0.001)
    return True


@pytest.mark.parametrize(("step", "moment"), [*moments(STEPS), *((name, "enter") for name in UNDONE)])
def test_a_copy_that_fails_leaves_its_parent_as_it_was(
    tmp_path: Path, step: str, moment: Moment, no_trace: None
) -> None:
    failing = Failing()

    async def main(world: World) -> None:
        parent, started, got = await lone(world), anyio.Event(), bytearray()
        alone = world.admission.reserved
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(following, parent, started, got)
            await started.wait()
            failing.at = (step, moment)
            with pytest.raises(errors.HostFull):
                await world.sandboxes.fork(TENANT, parent.info.id, 2)
            assert parent.info.state is State.RUNNING
            await settled(world, alone)
            assert stored(tmp_path) == []
            assert world.sandboxes.count_live() == 1
            await answers(parent)
            await answers((await world.sandboxes.fork(TENANT, parent.info.id, 1))[0])
            assert bytes(got) == b"before "
            tasks.cancel_scope.cancel()
        await kill_all(world)

    run(tmp_path, main, failing)


@pytest.mark.parametrize("step", STEPS)
def test_the_vmm_of_the_parent_dies_in_the_middle(tmp_path: Path, step: str, no_trace: None) -> None:
    worlds = list[World]()

    def reach(name: str, moment: Moment) -> None:
        if (name, moment) == (step, "enter") and worlds:
            machine = worlds.pop().driver.latest
            assert machine is not None
            with suppress(ProcessLookupError):
                os.kill(machine.pid, signal.SIGKILL)
                os.waitid(os.P_PID, machine.pid, os.WEXITED | os.WNOWAIT)  # else a fork might be done before

    async def main(world: World) -> None:
        parent = await lone(world)
        worlds.append(world)
        with suppress(errors.VmmError, errors.GuestError, errors.StateConflict):  # else it had all of it by then
            await answers((await world.sandboxes.fork(TENANT, parent.info.id, 1))[0])
        await parent.ended.wait()
        assert parent.info.state_reason is not None
        assert parent.info.state_reason.code == "vmm-died"
        await kill_all(world)
        await settled(world, Amount(0, 0))

    run(tmp_path, main, reach)


@pytest.mark.parametrize("step", STEPS)
def test_its_end_is_wanted_in_the_middle(tmp_path: Path, step: str, no_trace: None) -> None:
    parents = list[Handle]()

    def reach(name: str, moment: Moment) -> None:
        if (name, moment) == (step, "enter"):
            parents[0].ask_stop(starting.Reason.KILLED, "by a test")

    async def main(world: World) -> None:
        parents.append(await lone(world))
        refused = False
        try:
            copies = await world.sandboxes.fork(TENANT, parents[0].info.id, 1)
        except errors.StateConflict:
            refused = True
        else:  # it was past all that takes long
            await answers(copies[0])
        assert refused or step == STEPS[-1]
        assert (await parents[0].kill()).state is State.TERMINATED
        await kill_all(world)
        await settled(world, Amount(0, 0))

    run(tmp_path, main, reach)


def test_all_of_them_or_none(tmp_path: Path, no_trace: None) -> None:
    async def main(world: World) -> None:
        parent = await lone(world)
        alone = world.admission.reserved
        for count in (0, 65, -1):
            with pytest.raises(errors.InvalidSpec):
                await world.sandboxes.fork(TENANT, parent.info.id, count)
        with pytest.raises(errors.HostFull):
            await world.sandboxes.fork(TENANT, parent.info.id, 8)
        await settled(world, alone)
        assert [info.id for info in await world.sandboxes.list(TENANT)] == [parent.info.id]
        assert stored(tmp_path) == []
        with pytest.raises(errors.NotFound):
            await world.sandboxes.fork("another", parent.info.id, 1)
        await parent.kill()

    run(tmp_path, main, room=4)


def test_where_not_all_fit_nothing_is_copied(tmp_path: Path, no_trace: None) -> None:
    """And what fits is all set aside before: nobody else gets it in between."""
    steps = list[str]()

    async def main(world: World) -> None:
        parent = await lone(world)
        alone, most = world.admission.reserved, await world.sandboxes._most_of(parent)
        each = world.admission.amount("unknown", parent.info.memory_mib, parent.info.disk_mib)
        fit = (world.admission.budget - alone).memory_mib // each.memory_mib
        steps.clear()
        with pytest.raises(errors.HostFull, match=f"{each * (fit + 1)}"):
            await world.sandboxes.fork(TENANT, parent.info.id, fit + 1)
        assert steps == []
        await settled(world, alone)
        seen = list[Amount]()
        copies = await world.sandboxes.fork(
            TENANT, parent.info.id, fit, on_progress=lambda *_: seen.append(world.admission.reserved)
        )
        assert seen[0] == alone + each * fit + most
        assert "take-copy" in steps
        for copy in copies:
            await copy.kill()
        await settled(world, alone)
        await parent.kill()

    run(tmp_path, main, reach=lambda name, _: steps.append(name), room=4)


@pytest.mark.parametrize("moment", range(1, 60, 4))
def test_who_asked_gives_up(tmp_path: Path, moment: int, no_trace: None) -> None:
    """At some moment, whichever it is: nothing of it stays, and the parent goes on."""

    async def main(world: World) -> None:
        parent = await lone(world)
        alone = world.admission.reserved
        with anyio.CancelScope() as scope:
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(world.sandboxes.fork, TENANT, parent.info.id, 2)
                for _ in range(moment):
                    await anyio.sleep(0.002)
                scope.cancel()
        await answers(parent)
        if scope.cancelled_caught:
            for info in await world.sandboxes.list(TENANT):
                if info.id != parent.info.id:  # its create had returned before
                    await world.sandboxes.kill(TENANT, info.id)
            await settled(world, alone)
            assert stored(tmp_path) == []
        await kill_all(world)
        await settled(world, Amount(0, 0))

    run(tmp_path, main)


def test_one_that_rests_is_resumed_first_if_a_call_may(tmp_path: Path, no_trace: None) -> None:
    async def main(world: World) -> None:
        for auto_resume in (True, False):
            parent = await lone(world, auto_resume=auto_resume)
            await parent.suspend()
            if auto_resume:
                await answers((await world.sandboxes.fork(TENANT, parent.info.id, 1))[0])
                await answers(parent)
            else:
                with pytest.raises(errors.StateConflict):
                    await world.sandboxes.fork(TENANT, parent.info.id, 1)
                assert parent.info.state is State.SUSPENDED
        await kill_all(world)
        await settled(world, Amount(0, 0))

    run(tmp_path, main)


def test_what_a_suspended_one_has_written_is_reserved_too(tmp_path: Path, no_trace: None) -> None:
    async def main(world: World) -> None:
        parent = await lone(world)
        (tmp_path / "sandboxes" / parent.info.id / "disk").write_bytes(bytes(3 << 20))
        most = await world.sandboxes._most_of(parent)
        assert most == Amount(0, parent.info.memory_mib + 3)
        await parent.suspend()
        assert await world.sandboxes._most_of(parent) == most
        await parent.kill()

    run(tmp_path, main)


def test_whoever_wants_something_else_at_once(tmp_path: Path, no_trace: None) -> None:
    """Forks and suspends of one sandbox, all at the same time: each is done in its turn."""

    async def main(world: World) -> None:
        parent, made = await lone(world), list[Handle]()

        async def fork() -> None:
            made.extend(await world.sandboxes.fork(TENANT, parent.info.id, 2))

        async with anyio.create_task_group() as tasks:
            for act in (fork, parent.suspend, fork, parent.suspend, parent.resume, fork):
                tasks.start_soon(act)
        assert len({copy.info.id for copy in made}) == 6
        for handle in (*made, parent):
            await answers(handle)
        await kill_all(world)
        await settled(world, Amount(0, 0))

    run(tmp_path, main)


def test_what_suspended_copies_stand_on_stays(tmp_path: Path, no_trace: None) -> None:
    """Also for the next daemon, which removes what nobody stands on."""
    left = list[str]()

    async def live() -> None:
        async with open_world(tmp_path) as world:
            parent = await lone(world)
            first, second = await world.sandboxes.fork(TENANT, parent.info.id, 2)
            await first.suspend()
            await second.kill()
            (template,) = stored(tmp_path)
            assert first.info.snapshot == template
            left.append(template)
            alone = await world.sandboxes.fork(TENANT, parent.info.id, 1)
            await alone[0].kill()
            await gone(tmp_path, alone[0].info.snapshot)
        assert stored(tmp_path) == left
        infos = [first.info]
        (tmp_path / "snapshots" / "image").mkdir()
        (tmp_path / "snapshots" / "image" / "manifest.json").write_text("{}")
        for suspended in (infos, []):
            async with anyio.create_task_group() as tasks:
                templates = Templates(tmp_path / "snapshots", world.admission, tasks)
                await templates.load(suspended)
                assert templates.is_used(template) is bool(suspended)
                tasks.cancel_scope.cancel()
            assert stored(tmp_path) == sorted([*(left if suspended else ()), "image"])

    anyio.run(live)


def test_what_is_made_of_it_has_its_surroundings_on_record_too(tmp_path: Path, no_trace: None) -> None:
    """For a boot from its disk, when its memory is of no use. A create's own win."""

    async def main(world: World) -> None:
        parent = await lone(world, env={"A": "parent", "B": "parent"}, user="worker", cwd="/srv")
        kept = await world.sandboxes.take(TENANT, parent.info.id, image="mine@1")
        assert Snapshot.read(kept.folder, Seal(bytes(32)), tenant=TENANT).surroundings == kept.surroundings
        world.snapshot = kept
        child = await lone(world, env={"B": "child"}, cwd="/tmp")
        assert (child.spec.env, child.spec.user, child.spec.cwd) == ({"A": "parent", "B": "child"}, "worker", "/tmp")
        (grandchild,) = await world.sandboxes.fork(TENANT, child.info.id, 1)
        await grandchild.suspend()
        spec = Suspended.read(tmp_path / "sandboxes" / grandchild.info.id).user_spec()
        assert (spec.env, spec.user, spec.cwd) == (child.spec.env, "worker", "/tmp")
        with pytest.raises(errors.InvalidSpec, match="env is over"):
            await lone(world, env={"C": "x" * (MAX_ENV_BYTES - 10)})
        await kill_all(world)
        remove_folder(kept.folder)

    run(tmp_path, main)


def test_what_is_kept_is_sealed_as_what_it_is(tmp_path: Path, no_trace: None) -> None:
    async def main(world: World) -> None:
        parent = await lone(world)
        kept = await world.sandboxes.take(TENANT, parent.info.id, image="mine@1")
        seal = Seal(bytes(32))
        assert Snapshot.read(kept.folder, seal, tenant=TENANT) == kept
        assert (kept.kind, kept.image, kept.parent_sandbox) == ("user", "mine@1", parent.info.id)
        assert kept.is_session
        for name, digest in kept.digests.items():
            with (kept.folder / name).open("rb") as file:
                assert kept.digest_of(name, file.fileno()) == digest
        with pytest.raises(errors.SealBroken):
            Snapshot.read(kept.folder, seal, tenant="another")
        manifest = kept.folder / "manifest.json"
        body = json.loads(manifest.read_text())
        for changed in ({"kind": "fork"}, {"kind": "image"}, {"parent_sandbox": None}, {"tenant": "another"}):
            manifest.chmod(0o600)
            manifest.write_text(json.dumps(body | changed))
            with pytest.raises(errors.SealBroken):
                Snapshot.read(kept.folder, seal, tenant=TENANT)
        for path in kept.folder.iterdir():
            path.unlink()
        kept.folder.rmdir()
        await parent.kill()

    run(tmp_path, main)


@pytest.mark.parametrize("what", ["memory", "manifest.json", "snapshots"])
def test_nothing_of_it_stays_when_it_cannot_be_made_durable(
    tmp_path: Path, what: str, no_trace: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(path: Path) -> None:
        if path.name == what:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    async def main(world: World) -> None:
        parent = await lone(world)
        with monkeypatch.context() as patch:
            patch.setattr("casemate.sandbox.copying.sync_folder", full)
            patch.setattr("casemate.sandbox.copying.sync_file", full)
            with pytest.raises(errors.HostFull):
                await world.sandboxes.take(TENANT, parent.info.id, image="mine@1")
        assert stored(tmp_path) == []
        await answers(parent)
        await parent.kill()

    run(tmp_path, main)


def test_what_is_made_of_it_is_thawed_when_it_was_introduced(tmp_path: Path, no_trace: None) -> None:
    steps = list[str]()

    def reach(name: str, moment: Moment) -> None:
        if moment == "done":
            steps.append(name)

    async def main(world: World) -> None:
        parent = await lone(world)
        assert "thaw" not in steps
        kept = await world.sandboxes.take(TENANT, parent.info.id, image="mine@1")
        world.snapshot = replace(kept)
        copy = await lone(world)
        assert copy.info.image == "mine@1"
        assert copy.info.forked_from is None
        assert steps.index("handshake", steps.index("take-disk")) < steps.index("thaw")
        await kill_all(world)
        assert stored(tmp_path) == [kept.id]
        for path in kept.folder.iterdir():
            path.unlink()
        kept.folder.rmdir()

    run(tmp_path, main, reach)


@pytest.mark.parametrize("command", ["pause", "save_state"])
def test_who_asked_gives_up_while_the_vmm_is_at_it(
    tmp_path: Path, command: str, monkeypatch: pytest.MonkeyPatch, no_trace: None
) -> None:
    """A command that was given is carried out, whoever waits for its answer."""

    async def main(world: World) -> None:
        parent = await lone(world)
        machine = world.driver.latest
        assert machine is not None
        done, at_it, ends = getattr(machine, command), anyio.Event(), list[str]()

        async def slow(*given: Path) -> None:
            await done(*given)
            at_it.set()
            await anyio.sleep(0.1)
            ends.append("answered")

        monkeypatch.setattr(machine, command, slow)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(world.sandboxes.fork, TENANT, parent.info.id, 1)
            await at_it.wait()
            tasks.cancel_scope.cancel()
        assert ends == ["answered"]
        await answers(parent)
        assert not parent.stopping
        await parent.kill()

    run(tmp_path, main)


def test_what_cannot_be_removed_ends_nobody_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, no_trace: None
) -> None:
    """The next start sweeps it; its room stays reserved until then."""

    async def main(world: World) -> None:
        parent = await lone(world)
        alone = world.admission.reserved
        (copy,) = await world.sandboxes.fork(TENANT, parent.info.id, 1)
        template = copy.info.snapshot
        with monkeypatch.context() as broken:
            broken.setattr(templates, "remove_folder", refuse)
            await copy.kill()
            with anyio.fail_after(10):
                while world.sandboxes.templates.is_used(template):
                    await anyio.sleep(0.001)
        (dying,) = stored(tmp_path)
        assert dying == f".building-{template}"  # what the next start removes, whatever of it is left
        left = world.admission.reserved - alone
        assert left.disk_mib > 0
        await answers(parent)
        (again,) = await world.sandboxes.fork(TENANT, parent.info.id, 1)
        await answers(again)
        await kill_all(world)
        await settled(world, left)
        assert stored(tmp_path) == [dying]
        remove_folder(tmp_path / "snapshots" / dying)
        world.admission.release(left)

    run(tmp_path, main)


def refuse(_: Path) -> None:
    raise OSError(5, "the disk is broken")
