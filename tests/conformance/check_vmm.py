"""What every driver promises (casemate.vmm.contract), checked against the contract and nothing below it.

A driver's tests hand each check a Bench: the driver, a template that was saved from one of its machines, and how
to boot one. Nothing is assumed of what a guest is but the agent's answers.
"""

from __future__ import annotations

import hashlib
import os
import signal
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import anyio
import pytest

from casemate import errors
from casemate.images import copy_disk
from casemate.sandbox import Introduction, Link, execs, introduce, new_id
from casemate.sandbox.carrying import carried
from casemate.vmm import Drive, Driver, Kernel, Machine, MachineSpec, SnapshotFiles
from casemate.vmm.working_set import read_ahead

ANSWER_S = 30.0
SILENCE_S = 0.5  # no answer for so long: its vCPUs stand still
CONSOLE_BYTES = 65_536


@dataclass(frozen=True)
class Bench:
    driver: Driver
    kernel: Kernel
    template: SnapshotFiles
    template_disk: Path
    spec: MachineSpec  # with the template's disk as its last drive
    folder: Path  # a fresh one for each check

    def clone(self) -> MachineSpec:
        """A spec with a disk of its own."""
        guest_id = new_id()
        disk = self.folder / guest_id
        copy_disk(self.template_disk, disk)
        return replace(self.spec, guest_id=guest_id, drives=(*self.spec.drives[:-1], Drive(disk, writable=True)))


@asynccontextmanager
async def linked(machine: Machine) -> AsyncIterator[Link]:
    link = Link("guest", silence_s=ANSWER_S)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(link.run, machine.stream)
        yield link
        tasks.cancel_scope.cancel()


async def say(link: Link, text: str) -> bytes:
    output = b""
    async with execs.start(link, execs.ExecSpec(("echo", text))) as running:
        while isinstance(piece := await running.read(), execs.Output):
            output += piece.data
    assert piece.end == execs.Exited(0)
    return output.strip()


def is_there(pid: int) -> bool:
    return Path(f"/proc/{pid}").exists()


def digests(*paths: Path) -> list[str]:
    return [hashlib.sha256(path.read_bytes()).hexdigest() for path in paths]


async def check_boot_save_and_restore(bench: Bench) -> None:
    """From a cold boot to a clone of what was saved."""
    memory, state = bench.folder / "memory", bench.folder / "state"
    spec = bench.clone()
    async with bench.driver.boot(spec, bench.kernel, memory) as machine:
        assert is_there(machine.pid)
        async with linked(machine) as link:
            await introduce(link, Introduction("template"), 60)
        await machine.pause()
        await machine.save_state(state)
        assert memory.stat().st_size == spec.memory_mib << 20
    saved_disk = spec.drives[-1].path
    memory.chmod(0o444)
    state.chmod(0o444)
    again = replace(bench, template=SnapshotFiles(memory, state), template_disk=saved_disk)
    async with bench.driver.restore(again.clone(), again.template) as machine:
        await machine.unpause()
        async with linked(machine) as link:
            await introduce(link, Introduction("clone"), ANSWER_S)


@asynccontextmanager
async def running(bench: Bench) -> AsyncIterator[tuple[Machine, Link]]:
    """A clone that runs, and has been introduced."""
    async with bench.driver.restore(bench.clone(), bench.template) as machine:
        await machine.unpause()
        async with linked(machine) as link:
            await introduce(link, Introduction("clone"), ANSWER_S)
            yield machine, link


async def check_a_clone_is_born_paused(bench: Bench) -> None:
    """Its memory can be saved, which of one that runs it cannot."""
    async with bench.driver.restore(bench.clone(), bench.template) as machine:
        await machine.save_difference(bench.template.memory, bench.folder / "unborn")
        await machine.unpause()
        async with linked(machine) as link:
            await link.ping(timeout_s=ANSWER_S)
            with pytest.raises(errors.StateConflict):
                await machine.save_difference(bench.template.memory, bench.folder / "while it runs")


async def check_pause_and_unpause(bench: Bench) -> None:
    async with running(bench) as (machine, link):
        await machine.pause()
        with pytest.raises(errors.AgentSilent):
            await link.ping(timeout_s=SILENCE_S)
        await machine.unpause()
        await link.ping(timeout_s=ANSWER_S)
        assert await say(link, "awake") == b"awake"


async def check_frozen_and_thawed(bench: Bench) -> None:
    async with running(bench) as (machine, link):
        said = await machine.console()
        await machine.freeze()
        with pytest.raises(errors.AgentSilent):
            await link.ping(timeout_s=SILENCE_S)
        with anyio.fail_after(SILENCE_S):
            assert await machine.console() == said
            assert (await machine.account(bench.template.memory)).pid == machine.pid
            with pytest.raises(errors.StateConflict):
                await machine.pause()
        await machine.thaw()
        await link.ping(timeout_s=ANSWER_S)
        assert await say(link, "awake") == b"awake"


async def check_a_frozen_machine_is_killed_at_once(bench: Bench) -> None:
    async with bench.driver.restore(bench.clone(), bench.template) as machine:
        await machine.unpause()
        await machine.freeze()
        left_s = anyio.current_time()
    assert anyio.current_time() - left_s < SILENCE_S * 2
    assert not is_there(machine.pid)


async def check_a_clone_is_saved_and_restored_twice(bench: Bench) -> None:
    """Each time against the same memory, on the same disk."""
    spec, files, difference = bench.clone(), bench.template, None
    before = digests(bench.template.memory, bench.template.state)
    for number in range(3):
        async with bench.driver.restore(spec, files, difference=difference) as machine:
            await machine.unpause()
            link = Link("guest", silence_s=ANSWER_S)
            link.begin(reopened=bool(number))
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(link.run, machine.stream)
                await introduce(link, Introduction("clone", fresh=not number), ANSWER_S)
                assert await say(link, str(number)) == str(number).encode()
                with pytest.raises(errors.StateConflict):
                    await machine.save_difference(bench.template.memory, bench.folder / "while it runs")
                await machine.pause()
                tasks.cancel_scope.cancel()
            files = replace(bench.template, state=bench.folder / f"state {number}")
            difference = bench.folder / f"difference {number}"
            await machine.save_state(files.state)
            saved = await machine.save_difference(bench.template.memory, difference)
            assert saved.bytes == difference.stat().st_size
            assert [saved.sha256] == digests(difference)
    assert digests(bench.template.memory, bench.template.state) == before


async def check_a_clone_is_copied_and_goes_on(bench: Bench) -> None:
    """Each from the copy of the one before; whom it was copied from notices nothing."""
    source, files = bench.template_disk, bench.template
    before = digests(files.memory, files.state)
    for number in range(3):
        again = replace(bench, template_disk=source)
        async with bench.driver.restore(again.clone(), files) as machine:
            await machine.unpause()
            link = Link("guest", silence_s=ANSWER_S)
            link.begin(reopened=bool(number))
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(link.run, machine.stream)
                await introduce(link, Introduction("clone"), ANSWER_S)
                assert await say(link, str(number)) == str(number).encode()
                into = SnapshotFiles(bench.folder / f"memory {number}", bench.folder / f"state {number}")
                copy_disk(files.memory, into.memory)
                with pytest.raises(errors.StateConflict):
                    await machine.save_memory(files.memory, into.memory)
                await machine.pause()
                await machine.save_state(into.state)
                assert await machine.save_memory(files.memory, into.memory) <= into.memory.stat().st_size
                into.memory.chmod(0o444)
                into.state.chmod(0o444)
                await machine.unpause()
                if machine.stream_survives:
                    assert await say(link, "on") == b"on"
                tasks.cancel_scope.cancel()
            if not machine.stream_survives:
                await see_the_next_stream(machine, link)
        assert into.memory.stat().st_size == files.memory.stat().st_size
        files = into
    assert digests(bench.template.memory, bench.template.state) == before


async def see_the_next_stream(machine: Machine, link: Link) -> None:
    """After a save that the stream has not survived: who begins anew finds the guest as it was."""
    assert await machine.reopen_stream() is machine.stream
    link.begin(reopened=True)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(link.run, machine.stream)
        await introduce(link, Introduction("clone", fresh=False), ANSWER_S)
        assert await say(link, "on") == b"on"
        tasks.cancel_scope.cancel()


async def check_a_conversation_goes_on_after_each_save(bench: Bench) -> None:
    """In who was saved and in who is restored, over the same stream or another: nothing is lost, nothing said twice."""
    spec, files, difference = bench.clone(), bench.template, None
    link, cat = Link("guest", silence_s=ANSWER_S), execs.ExecSpec(("cat",), stdin=True)
    async with AsyncExitStack() as stack:
        running: execs.Exec | None = None
        fed = heard = b""
        for number in range(3):
            async with bench.driver.restore(spec, files, difference=difference) as machine:
                await machine.unpause()
                async with carried(link, machine) as carrier:
                    await introduce(link, Introduction("clone", fresh=not number), ANSWER_S)
                    link.speak()
                    running = running or await stack.enter_async_context(execs.start(link, cat))
                    for again in range(2):
                        while len(heard) < len(fed):
                            piece = await running.read()
                            assert isinstance(piece, execs.Output)
                            assert piece.offset == len(heard)
                            heard += piece.data
                        assert heard == fed
                        fed += (word := b"%d %d\n" % (number, again) * 1000)
                        await running.feed(word)  # under way while it is saved
                        await carrier.hush()
                        await machine.pause()
                        await carrier.drain()
                        files = replace(bench.template, state=bench.folder / f"state {number} {again}")
                        await machine.save_state(files.state)
                        if not again:
                            await machine.unpause()
                            await carrier.unhush()
                            link.speak()
                    difference = bench.folder / f"difference {number}"
                    await machine.save_difference(bench.template.memory, difference)
                    link.rest()


async def check_what_is_no_difference_is_refused(bench: Bench) -> None:
    wrong = bench.folder / "wrong"
    for content in (b"", b"nonsense" * 1000):
        wrong.write_bytes(content)
        with pytest.raises(errors.ImageBroken):
            async with bench.driver.restore(bench.clone(), bench.template, difference=wrong):
                pytest.fail("it started")


async def check_a_build_that_is_not_kept_is_refused(bench: Bench) -> None:
    platform = await bench.driver.platform()
    async with bench.driver.restore(bench.clone(), bench.template, vmm_sha256=platform.vmm_sha256):
        pass
    for digest in ("f" * 64, "../" + platform.vmm_sha256):
        with pytest.raises(errors.ToolMissing):
            async with bench.driver.restore(bench.clone(), bench.template, vmm_sha256=digest):
                pytest.fail("it started")


async def check_clones_share_a_template_nobody_changes(bench: Bench) -> None:
    files = (bench.template.memory, bench.template.state, bench.template_disk)
    before = digests(*files)

    async def live(name: str) -> None:
        async with running(bench) as (_, link):
            assert await say(link, name) == name.encode()

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(live, "one")
        tasks.start_soon(live, "two")
    assert digests(*files) == before


async def check_leaving_kills(bench: Bench) -> None:
    """However the block ends."""
    pids = []

    async def enter(then: Callable[[], Awaitable[object]]) -> None:
        async with bench.driver.restore(bench.clone(), bench.template) as machine:
            pids.append(machine.pid)
            await machine.unpause()
            await then()

    async def fail() -> None:
        raise KeyError("something of the user's")

    await enter(anyio.lowlevel.checkpoint)
    with pytest.raises(KeyError):
        await enter(fail)
    with anyio.CancelScope() as scope:

        async def be_cancelled() -> None:
            scope.cancel()
            await anyio.sleep_forever()

        await enter(be_cancelled)
    assert scope.cancelled_caught
    assert len(set(pids)) == 3
    assert not [pid for pid in pids if is_there(pid)]


async def check_a_vmm_that_dies_is_told(bench: Bench) -> None:
    async with bench.driver.restore(bench.clone(), bench.template) as machine:
        await machine.unpause()
        os.kill(machine.pid, signal.SIGKILL)
        with anyio.fail_after(ANSWER_S):
            end = await machine.wait_exit()
        assert (end.status, end.signal) == (None, signal.SIGKILL)
        with pytest.raises(errors.VmmError):
            await machine.pause()
        assert await machine.console() == b""


async def check_a_lost_stream_can_be_replaced(bench: Bench) -> None:
    async with bench.driver.restore(bench.clone(), bench.template) as machine:
        await machine.unpause()
        link = Link("guest", silence_s=ANSWER_S)
        for number in range(3):
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(link.run, machine.stream)
                await introduce(link, Introduction("clone", fresh=not number), ANSWER_S)
                assert await say(link, str(number)) == str(number).encode()
                tasks.cancel_scope.cancel()
            assert await machine.reopen_stream() is machine.stream
            link.begin(reopened=True)


async def check_the_console_is_bounded(bench: Bench) -> None:
    async with bench.driver.restore(bench.clone(), bench.template) as machine:
        await machine.unpause()
        said = await machine.console()
        assert len(said) <= CONSOLE_BYTES
        assert (await machine.console())[: len(said)] == said  # to be asked for is not to be forgotten
        assert machine.console_written >= len(said)


async def check_what_cannot_start_is_a_typed_error(bench: Bench) -> None:
    spec, nowhere = bench.clone(), bench.folder / "nowhere"
    broken = [
        (spec, SnapshotFiles(nowhere, bench.template.state)),
        (spec, SnapshotFiles(bench.template.memory, nowhere)),
        (replace(spec, drives=(Drive(nowhere), *spec.drives[1:])), bench.template),
    ]
    for machine, template in broken:
        with pytest.raises(errors.CasemateError):
            async with bench.driver.restore(machine, template):
                pytest.fail("it started")


async def check_cancelled_while_it_starts(bench: Bench) -> None:
    """Given up at any moment, a restore leaves nothing: the caller's leak check looks."""
    for delay_s in (0.0, 0.005, 0.02, 0.05):
        with anyio.move_on_after(delay_s):
            async with bench.driver.restore(bench.clone(), bench.template):
                break


async def check_what_a_clone_needs_first_is_recorded(bench: Bench) -> None:
    recorded = replace(bench.template, working_set=bench.folder / "working-set")
    assert recorded.working_set is not None
    async with bench.driver.restore(bench.clone(), recorded) as machine:
        await machine.unpause()
        async with linked(machine) as link:
            await introduce(link, Introduction("first"), ANSWER_S)
            await machine.record_working_set(recorded.memory, recorded.working_set)
    assert read_ahead(recorded) > 0
    async with bench.driver.restore(bench.clone(), recorded) as machine:
        await machine.unpause()
        async with linked(machine) as link:
            await introduce(link, Introduction("second"), ANSWER_S)


CHECKS = [check for name, check in sorted(globals().items()) if name.startswith("check_")]
