"""The daemon's end of the launcher, with the launcher at the other."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import anyio
import pytest

from casemate.config import Settings, load
from casemate.errors import HostError, InvalidSpec, ToolFailed, VmmExited
from casemate.host import Bind, Jail, Limits, open_launcher, start_launcher
from casemate.host.cgroup import Groups, Trees, group_of_home

UIDS = 2_120_000_000
LIMITS = Limits(memory_bytes=64 << 20, cpu_percent=150, pids=40)
pytestmark = pytest.mark.skipif(shutil.which("bwrap") is None, reason="bubblewrap is not installed")


@pytest.mark.skipif(
    os.geteuid() != 0 or not os.access("/sys/fs/cgroup", os.W_OK), reason="control groups cannot be written here"
)
def test_a_sweep_names_what_it_removed_and_is_of_this_home_only(tmp_path: Path, no_trace: None) -> None:
    trees = Trees.find(Path("/proc/self/mountinfo").read_text())
    left = Groups(trees, group_of_home(tmp_path / "one"))
    others = Groups(trees, group_of_home(tmp_path / "two"))
    for name in ("a", "b"):
        left.create(name, LIMITS)
    other = others.create("a", LIMITS)

    async def run() -> tuple[list[str], list[str]]:
        settings = Settings(home=tmp_path / "one", uid_base=UIDS, uid_count=8)
        async with open_launcher(start_launcher(settings)) as launcher:
            return await launcher.sweep(), await launcher.sweep()

    assert anyio.run(run) == (["a", "b"], [])
    assert all(folder.is_dir() for folder in other.folders)
    assert other.remove()
    others.close()


def test_an_account_of_what_has_ended_is_a_typed_error(tmp_path: Path, no_trace: None) -> None:
    (tmp_path / "memory").write_bytes(bytes(4096))

    async def run() -> None:
        settings = Settings(home=tmp_path, uid_base=UIDS, uid_count=8, allow_weak_jail=True)
        async with open_launcher(start_launcher(settings)) as launcher:
            usr, memory = os.open("/usr", os.O_PATH), os.open(tmp_path / "memory", os.O_RDONLY)
            try:
                jail = Jail((Bind(3, "/usr"),), "one", LIMITS)
                command = ["/usr/bin/sleep", "0.5"]  # what ends before its pid was looked up has not begun
                async with launcher.spawn(jail, command, [2, usr]) as child:
                    await child.exited.wait()
                    with pytest.raises(VmmExited, match="does not run"):
                        await launcher.attest(child, memory)
            finally:
                os.close(usr)
                os.close(memory)

    anyio.run(run)


@pytest.mark.skipif(os.geteuid() != 0, reason="as another bubblewrap fails after it has told a pid")
def test_what_could_not_start_is_told_with_what_it_said(tmp_path: Path, no_trace: None) -> None:
    async def run() -> ToolFailed:
        settings = Settings(home=tmp_path, uid_base=UIDS, uid_count=8, allow_weak_jail=True)
        says, said = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        try:
            async with open_launcher(start_launcher(settings)) as launcher:
                with pytest.raises(ToolFailed) as raised:
                    async with launcher.spawn(Jail((Bind(9, "/usr"),), "one", LIMITS), ["/usr/bin/true"], [said], says):
                        pytest.fail("it started without a file that it was to have")
                return raised.value
        finally:
            os.close(says)
            os.close(said)

    error = anyio.run(run)
    assert "/usr/bin/true did not start: exit status 127: casemate launcher: OSError(9, 'open_tree" in error.message
    assert "descriptor 9" in error.evidence["stderr"]


def test_when_the_launcher_is_gone_it_is_said_at_once(tmp_path: Path) -> None:
    async def run() -> None:
        process = start_launcher(Settings(home=tmp_path, uid_base=UIDS, uid_count=8))
        async with open_launcher(process) as launcher:
            process.process.kill()
            await launcher.wait_gone()
            with pytest.raises(HostError):
                await launcher.sweep()

    anyio.run(run)


@pytest.mark.parametrize(("text", "value"), [("1", True), ("true", True), ("No", False), ("0", False)])
def test_a_setting_that_is_yes_or_no(text: str, value: bool, tmp_path: Path) -> None:
    assert load({"CASEMATE_HOME": str(tmp_path), "CASEMATE_ALLOW_WEAK_JAIL": text}).allow_weak_jail is value
    with pytest.raises(InvalidSpec, match="allow_weak_jail"):
        load({"CASEMATE_HOME": str(tmp_path), "CASEMATE_ALLOW_WEAK_JAIL": "perhaps"})
