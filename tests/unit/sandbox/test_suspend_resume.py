"""Suspend and resume in the supervisor's hands, over a VMM without a machine: who asks at once, what fails where."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from pathlib import Path

import anyio
import anyio.lowlevel
import pytest
from sandbox_world import TENANT, World, open_world
from tests.fakes.fake_vmm import FakeMachine

from casemate import errors
from casemate.sandbox import Handle, SandboxSpec, State, execs, starting, supervisor
from casemate.sandbox.plan import Moment
from casemate.sandbox.rest import Rest
from casemate.sandbox.resuming import Resumer
from casemate.sandbox.suspended import Place
from casemate.sandbox.suspending import Suspender

pytestmark = pytest.mark.usefixtures("each_stream")
NOTHING = object()
STARTER = starting.Starter(NOTHING, NOTHING, NOTHING, 1.0)  # type: ignore[arg-type]
SUSPEND = [step.name for step in Suspender(NOTHING, NOTHING).plan()]  # type: ignore[arg-type]
RESUME = [step.name for step in Resumer(STARTER, NOTHING, NOTHING).resume_plan()]  # type: ignore[arg-type]


def moments(names: list[str]) -> list[tuple[str, str]]:
    """All from the first step's end on, up to the deed: the last step's end, which nothing undoes."""
    return [(name, moment) for name in names for moment in ("enter", "done")][1:-1]


@pytest.fixture(autouse=True)
def room_for_little(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(starting, "SPARE_DISK_MIB", 0)


class Failing:
    """A disk that is full at one named step, once."""

    def __init__(self) -> None:
        self.at: tuple[str, Moment] | None = None

    def __call__(self, name: str, moment: Moment) -> None:
        if (name, moment) == self.at:
            self.at = None
            raise errors.HostFull("no space left")


async def answers(handle: Handle) -> None:
    with anyio.fail_after(10):
        async with handle.reach() as link, execs.start(link, execs.ExecSpec(("echo", "hello"))) as running:
            assert isinstance(found := await running.read(), execs.Output)
            assert found.data == b"hello"


async def following(handle: Handle, started: anyio.Event, got: bytearray) -> None:
    async with handle.reach() as link, execs.start(link, execs.ExecSpec(("cat",), stdin=True)) as running:
        started.set()
        await running.feed(b"before ")
        while isinstance(found := await running.read(), execs.Output):
            got += found.data


async def lone(world: World, **wish: object) -> Handle:
    handle = await world.sandboxes.create(TENANT, SandboxSpec("python", **wish))  # type: ignore[arg-type]
    await answers(handle)
    return handle


def run(folder: Path, main: Callable[[World, Failing], Awaitable[None]], **more: object) -> None:
    async def live() -> None:
        failing = Failing()
        with anyio.fail_after(60):
            async with open_world(folder, reach=failing, **more) as world:  # type: ignore[arg-type]
                await main(world, failing)
            assert not more or list(world.folders.iterdir()) is not None

    anyio.run(live)


def test_it_goes_on_where_it_stopped(tmp_path: Path, no_trace: None) -> None:
    async def main(world: World, _: Failing) -> None:
        handle, started, got = await lone(world), anyio.Event(), bytearray()
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(following, handle, started, got)
            await started.wait()
            for _ in range(3):
                assert (await handle.suspend()).state is State.SUSPENDED
                assert world.admission.reserved.memory_mib == 0
                assert (await handle.resume()).state is State.RUNNING
                await answers(handle)
            assert bytes(got) == b"before "
            tasks.cancel_scope.cancel()
        assert (await handle.kill()).state is State.TERMINATED
        assert list(world.folders.iterdir()) == []

    run(tmp_path, main)


@pytest.mark.parametrize(("step", "moment"), moments(SUSPEND))
def test_a_suspend_that_finds_no_room_leaves_it_running(
    tmp_path: Path, step: str, moment: Moment, no_trace: None
) -> None:
    async def main(world: World, failing: Failing) -> None:
        handle, started, got = await lone(world), anyio.Event(), bytearray()
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(following, handle, started, got)
            await started.wait()
            failing.at = (step, moment)
            with pytest.raises(errors.HostFull):
                await handle.suspend()
            assert handle.info.state is State.RUNNING
            assert {p.name for p in (world.folders / handle.info.id).iterdir()} == {"meta.json", "disk"}
            await answers(handle)
            await handle.suspend()
            await answers(handle)
            assert bytes(got) == b"before "
            tasks.cancel_scope.cancel()
        await handle.kill()
        assert list(world.folders.iterdir()) == []

    run(tmp_path, main)


@pytest.mark.parametrize(("step", "moment"), moments(RESUME))
def test_a_resume_that_finds_no_room_leaves_it_suspended(
    tmp_path: Path, step: str, moment: Moment, no_trace: None
) -> None:
    async def main(world: World, failing: Failing) -> None:
        handle = await lone(world)
        await handle.suspend()
        failing.at = (step, moment)
        with pytest.raises(errors.HostFull):
            await handle.resume()
        assert handle.info.state is State.SUSPENDED
        assert world.admission.reserved.memory_mib == 0
        await answers(handle)
        await handle.kill()
        assert list(world.folders.iterdir()) == []

    run(tmp_path, main, agent_timeout_s=2)


@pytest.mark.parametrize("step", [*SUSPEND, *RESUME])
def test_the_vmm_dies_in_the_middle(tmp_path: Path, step: str, no_trace: None) -> None:
    """In a suspend it is the end, or it was not needed any more; in a resume nothing is lost, until it runs."""
    worlds = list[World]()

    def reach(name: str, moment: Moment) -> None:
        if (name, moment) == (step, "enter") and worlds:
            machine = worlds.pop().driver.latest
            assert machine is not None
            with suppress(ProcessLookupError):
                os.kill(machine.pid, signal.SIGKILL)

    async def main() -> None:
        async with open_world(tmp_path, reach=reach, agent_timeout_s=2) as world:
            handle = await lone(world)
            if step in RESUME:
                await handle.suspend()
            worlds.append(world)
            act = handle.suspend if step in SUSPEND else handle.resume
            refused = False
            try:
                await act()
            except (errors.VmmError, errors.GuestError, errors.StateConflict):
                refused = True
            if step in RESUME[: RESUME.index("resume-attest")]:
                assert not refused  # there was none yet
            elif refused and step in RESUME:
                assert handle.info.state is State.SUSPENDED
            if handle.info.state is State.SUSPENDED:
                await answers(handle)
                await handle.kill()
            elif refused or step in RESUME[RESUME.index("resume-attest") :]:  # the fake's guest may outlive its VMM
                await handle.ended.wait()
                assert handle.info.state_reason is not None
                assert handle.info.state_reason.code == "vmm-died"
            else:
                await answers(handle)
                await handle.kill()
            assert list(world.folders.iterdir()) == []
            assert world.admission.reserved.memory_mib == 0

    with_limit(main)


def test_the_vmm_dies_when_nobody_needs_it_any_more(
    tmp_path: Path, no_trace: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its memory was taken, its disk is being taken: it is suspended, and its followers can take up again.

    Where its stream had been let go for the save they have nothing to take up: nobody saw it break.
    """
    take_disk = Place.take_disk

    async def main(world: World, _: Failing) -> None:
        handle, started, got = await lone(world), anyio.Event(), bytearray()
        refused = list[errors.CasemateError]()

        def slowly(place: Place) -> None:
            assert handle.info.pid is not None
            os.kill(handle.info.pid, signal.SIGKILL)
            time.sleep(0.3)  # in a thread: its end is noticed meanwhile
            take_disk(place)

        async def follow() -> None:
            try:
                await following(handle, started, got)
            except errors.GuestError as error:
                refused.append(error)

        monkeypatch.setattr(Place, "take_disk", slowly)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(follow)
            await started.wait()
            assert (await handle.suspend()).state is State.SUSPENDED
            while world.driver.stream_survives and not refused:
                await anyio.sleep(0.001)
            await answers(handle)
            assert bool(refused) is world.driver.stream_survives
            tasks.cancel_scope.cancel()

    run(tmp_path, main)


def test_a_vmm_that_is_told_to_pause_when_the_time_is_up_goes_on(
    tmp_path: Path, no_trace: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What it was told to do it does, whoever waits for its answer."""
    pause, told = FakeMachine.pause, list[str]()

    async def slowly(machine: FakeMachine) -> None:
        await pause(machine)
        told.append("pause")
        await anyio.sleep(supervisor.LIMIT_S)

    async def main(world: World, _: Failing) -> None:
        handle = await lone(world)
        monkeypatch.setattr(supervisor, "LIMIT_S", 1.0)
        monkeypatch.setattr(FakeMachine, "pause", slowly)
        with pytest.raises(errors.HostError, match="within 1 s"):
            await handle.suspend()
        assert told
        await answers(handle)
        await handle.kill()

    run(tmp_path, main)


def test_a_fault_of_ours_loses_nothing_that_is_stored(tmp_path: Path, no_trace: None) -> None:
    """It stays suspended, the next resume finds it as it was, and nobody else notices."""
    faults = ["resume-check"]

    def reach(name: str, moment: Moment) -> None:
        if name in faults:
            faults.remove(name)
            raise RuntimeError("nobody foresaw this")

    async def main() -> None:
        async with open_world(tmp_path, reach=reach) as world:
            handle, other = await lone(world), await lone(world)
            await handle.suspend()
            with pytest.raises(errors.CasemateError, match="nobody foresaw this") as raised:
                await handle.resume()
            assert raised.value.code == "internal"
            assert handle.info.state is State.SUSPENDED
            await handle.resume()
            await answers(handle)
            await answers(other)

    with_limit(main)


def test_a_fault_of_ours_while_it_runs_is_its_own_end(
    tmp_path: Path, no_trace: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def main(world: World, _: Failing) -> None:
        other = await lone(world)

        async def fail(rest: Rest) -> None:
            raise RuntimeError("nobody foresaw this")

        with monkeypatch.context() as patch:
            patch.setattr(Rest, "run", fail)
            handle = await lone(world)
            await handle.ended.wait()
        reason = handle.info.state_reason
        assert reason is not None
        assert (reason.code, "nobody foresaw this" in reason.message) == ("internal", True)
        await answers(other)

    run(tmp_path, main)


def test_the_disk_refuses_every_record_of_a_resume(
    tmp_path: Path, no_trace: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not even that it is resumed, or not, can be written down; nothing is lost for that."""

    async def main(world: World, _: Failing) -> None:
        handle = await lone(world)
        await handle.suspend()

        def full(*_: object, **__: object) -> None:
            raise errors.HostFull("no space left")

        with monkeypatch.context() as patch:
            patch.setattr("casemate.sandbox.records.write_meta", full)
            with pytest.raises(errors.HostFull):
                await handle.resume()
            assert handle.info.state is State.SUSPENDED
        await answers(handle)
        with monkeypatch.context() as patch:
            patch.setattr("casemate.sandbox.records.write_meta", full)
            with pytest.raises(errors.HostFull):
                await handle.suspend()
            assert handle.info.state is State.RUNNING
        await answers(handle)

    run(tmp_path, main)


def test_a_call_that_goes_on_with_one_at_rest_resumes_it(tmp_path: Path, no_trace: None) -> None:
    """It had reached it before it was suspended, as a terminal has that opens a channel more."""

    async def main(world: World, _: Failing) -> None:
        handle = await lone(world)
        link = handle.link
        await handle.suspend()
        async with link.open("exec", {"op": "list"}):
            assert handle.info.state is State.RUNNING
        kept = await lone(world, auto_resume=False)
        link = kept.link
        await kept.suspend()
        with pytest.raises(errors.StateConflict):
            async with link.open("exec", {"op": "list"}):
                pass
        assert kept.info.state is State.SUSPENDED

    run(tmp_path, main)


def test_a_held_call_is_told_why_it_cannot_be_resumed(tmp_path: Path, no_trace: None) -> None:
    async def main(world: World, _: Failing) -> None:
        handle = await lone(world)
        link, refused = handle.link, list[errors.CasemateError]()

        async def hold() -> None:
            try:
                async with link.open("exec", {"op": "list"}):
                    pass
            except errors.CasemateError as error:
                refused.append(error)

        async with anyio.create_task_group() as tasks:
            await handle.suspend()
            (world.folders / handle.info.id / "suspended" / "state").write_bytes(b"another")
            tasks.start_soon(hold)
            await anyio.sleep(0.05)
            with pytest.raises(errors.SealBroken):
                await handle.resume()
        assert [type(error) for error in refused] == [errors.SealBroken]
        assert handle.info.state is State.SUSPENDED
        await handle.kill()

    run(tmp_path, main)


def test_no_wish_is_lost_while_an_older_one_is_recorded(tmp_path: Path, no_trace: None) -> None:
    async def main(world: World, _: Failing) -> None:
        handle = await lone(world)
        for _ in range(20):
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(handle.suspend)
                while handle.info.state is not State.SUSPENDED:
                    await handle.changed.wait()
                tasks.start_soon(handle.resume)  # that it is suspended is being written down
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(handle.resume)
                while handle.info.state is not State.RUNNING:
                    await handle.changed.wait()
                tasks.start_soon(handle.suspend)
            await handle.resume()
        await answers(handle)

    run(tmp_path, main)


def test_who_wants_it_booted_does_not_share_the_fate_of_who_wants_it_resumed(tmp_path: Path, no_trace: None) -> None:
    async def main(world: World, failing: Failing) -> None:
        handle, refused = await lone(world), list[errors.CasemateError]()
        await handle.suspend()

        async def warm() -> None:
            try:
                await handle.resume()
            except errors.HostFull as error:
                refused.append(error)

        failing.at = ("resume-check", "enter")
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(warm)
            await anyio.lowlevel.checkpoint()
            with pytest.raises(errors.NotAttested):  # a fake VMM maps nothing: it came as far as to boot it
                await handle.resume(cold=True)
        assert refused
        await answers(handle)

    run(tmp_path, main)


def test_nobody_who_has_just_called_is_suspended_for_idling(tmp_path: Path, no_trace: None) -> None:
    async def main(world: World, _: Failing) -> None:
        handle = await lone(world)
        with handle.usage.busy():
            with pytest.raises(errors.StateConflict, match="in use again"):
                await handle.suspend("idle", if_unused=True)
            assert handle.info.state is State.RUNNING
            assert (await handle.suspend()).state is State.SUSPENDED
        await handle.resume()
        assert (await handle.suspend("idle", if_unused=True)).state is State.SUSPENDED

    run(tmp_path, main)


def test_many_at_once_want_different_things(tmp_path: Path, no_trace: None) -> None:
    """Whoever asks gets an answer, and it works afterwards."""

    async def main(world: World, _: Failing) -> None:
        handle = await lone(world)
        answered = 0

        async def client(number: int) -> None:
            nonlocal answered
            for turn in range(10):
                match (number + turn) % 3:
                    case 0:
                        await handle.suspend()
                    case 1:
                        await handle.resume()
                    case 2:
                        await answers(handle)
                answered += 1

        async with anyio.create_task_group() as tasks:
            for number in range(6):
                tasks.start_soon(client, number)
        assert answered == 60
        await answers(handle)

        refused = list[errors.CasemateError]()

        async def tolerant(act: Callable[[], Awaitable[object]]) -> None:
            try:
                await act()
            except (errors.StateConflict, errors.GuestError, errors.NotFound) as error:
                refused.append(error)

        async with anyio.create_task_group() as tasks:
            for act in (handle.suspend, handle.resume, handle.kill, handle.suspend, handle.resume):
                tasks.start_soon(tolerant, act)
        assert handle.info.state is State.TERMINATED
        assert list(world.folders.iterdir()) == []

    run(tmp_path, main)


@pytest.mark.parametrize("step", [*SUSPEND, *RESUME])
def test_the_daemons_end_in_the_middle(tmp_path: Path, step: str, no_trace: None) -> None:
    """What was asked for comes about, and what is suspended then stays so, whoever is held meanwhile."""
    reached = anyio.Event()

    def reach(name: str, moment: Moment) -> None:
        if (name, moment) == (step, "enter"):
            reached.set()

    async def main() -> None:
        async with open_world(tmp_path, reach=reach) as world:
            handle = await lone(world)

            async def rest() -> None:
                try:
                    await handle.suspend()
                    await handle.resume()
                except (errors.StateConflict, errors.HostFull):  # it has ended; the daemon is stopping
                    return

            async def hold() -> None:
                with suppress(errors.CasemateError):
                    async with link.open("exec", {"op": "list"}):
                        pass

            link = handle.link
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(rest)
                await reached.wait()
                tasks.start_soon(hold)
                await world.sandboxes.drain()
                tasks.cancel_scope.cancel()
            left = [p.name for p in world.folders.iterdir()]
            if step in (*SUSPEND, *RESUME[:-1]):
                assert left == [handle.info.id]
                assert handle.info.state is State.SUSPENDED
                assert {p.name for p in (world.folders / left[0]).iterdir()} == {"meta.json", "suspended"}
            else:
                assert handle.info.state in (State.TERMINATED, State.SUSPENDED)
                assert left == ([] if handle.info.state is State.TERMINATED else [handle.info.id])
        assert os.path.exists(tmp_path)

    with_limit(main)


def test_what_its_console_said_is_there_while_it_is_suspended(tmp_path: Path, no_trace: None) -> None:
    async def main(world: World, _: Failing) -> None:
        handle = await lone(world)
        said, at = await handle.console_since(0)
        assert said
        await handle.suspend()
        assert await handle.console_since(0) == (said, at)
        assert await handle.console_since(at) == (b"", at)
        await handle.resume()
        assert await handle.console_since(at + 1) == (said, at)  # another machine's, which began anew

    run(tmp_path, main)


def with_limit(main: Callable[[], Awaitable[None]]) -> None:
    async def live() -> None:
        with anyio.fail_after(30):
            await main()

    anyio.run(live)
