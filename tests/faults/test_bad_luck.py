"""A full disk, a clock that is set back, one name asked for twice at once: typed, nothing left, still serving."""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import pytest
from fault_world import daemon_on, events, folders, until, vmms
from tests.fair import fair_clock

from casemate.errors import CasemateError
from casemate.sdk import Client, Sandbox

pytestmark = [pytest.mark.vm, pytest.mark.slow]
# The daemon as it is, but with the wall's clock off by what a file says: a clock of the host's, set by hand
SET_BACK = """
import sys, time, pathlib
real, real_ns, shift = time.time, time.time_ns, pathlib.Path(sys.argv.pop(1))
time.time = lambda: real() + float(shift.read_text())
time.time_ns = lambda: real_ns() + int(float(shift.read_text()) * 1e9)
sys.argv[0] = "casemate.daemon"
from casemate.daemon import main
sys.exit(main())
"""


def create_named(url: str) -> str | CasemateError:
    with Client(url) as client:
        try:
            return Sandbox.create(name="one", client=client).id
        except CasemateError as error:
            return error


def test_of_two_creates_with_one_name_one_wins(home: Path, no_trace: None) -> None:
    with daemon_on(home) as running:
        url = str(running.client.target)
        for _ in range(5):
            with ThreadPoolExecutor(2) as threads:
                first, second = threads.map(create_named, [url, url])
            won, lost = (first, second) if isinstance(first, str) else (second, first)
            assert isinstance(won, str)
            assert isinstance(lost, CasemateError)
            assert lost.code == "state-conflict"
            assert [info.id for info in Sandbox.list(client=running.client)] == [won]
            assert list(vmms(home).values()) == [won]
            Sandbox.connect("one", client=running.client).kill()


@contextmanager
def small_disk(folder: Path, size_mib: int) -> Iterator[None]:
    if os.geteuid() != 0:
        pytest.skip("only root can mount a disk that is soon full")
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size_mib}m,mode=0700", "tmpfs", folder], check=True)
    try:
        yield
    finally:
        subprocess.run(["umount", "--lazy", folder], check=True)


def test_host_disk_full_while_creating(home: Path, no_trace: None) -> None:
    (disk,) = home.glob("snapshots/*/disk")
    one_mib = (disk.stat().st_blocks * 512 >> 20) + 1
    with small_disk(home / "sandboxes", 64 + 2 * one_mib), daemon_on(home, CASEMATE_DISK_BUDGET_MIB="9999") as running:
        with Sandbox.create(client=running.client) as fits:
            filler = home / "sandboxes" / fits.id / "filler"
            filler.write_bytes(bytes(3 * one_mib << 20))
            intents = len(events(home, "sandbox.create"))
            with pytest.raises(CasemateError) as raised:
                Sandbox.create(client=running.client)
            assert raised.value.code == "host-full"
            assert "MiB are free" in raised.value.message
            assert folders(home) == {fits.id}
            assert list(vmms(home).values()) == [fits.id]
            assert len(events(home, "sandbox.terminated")) >= 1
            assert len(events(home, "sandbox.create")) == intents + 1
            assert fits.commands.run("echo still here").stdout == "still here\n"
            filler.unlink()
            with Sandbox.create(client=running.client) as again:
                assert again.commands.run("echo again").stdout == "again\n"
        assert folders(home) == set()


def test_the_clock_of_the_host_set_back(home: Path, no_trace: None) -> None:
    shift = home / "shift"
    shift.write_text("0")
    with daemon_on(home, "-c", SET_BACK, str(shift)) as running:
        timed = Sandbox.create(client=running.client, max_duration_s=4)
        idle = Sandbox.create(client=running.client, idle_timeout_s=4)
        stays = Sandbox.create(client=running.client)
        born = {s.id: s.info.created_at for s in (timed, idle, stays)}
        shift.write_text("-86400")
        began = fair_clock()
        until(lambda: {i.id for i in Sandbox.list(client=running.client)} == {stays.id}, "their time is up", 10)
        assert fair_clock() - began < 8
        ended = {i.id: i for i in Sandbox.list(all=True, client=running.client) if i.id in born}
        assert {i: info.created_at for i, info in ended.items()} == born
        reasons = {i: info.state_reason.code for i, info in ended.items() if info.state_reason}
        assert reasons == {timed.id: "max-duration", idle.id: "idle"}
        assert stays.commands.run("echo still here").stdout == "still here\n"
        with Sandbox.create(client=running.client) as later:  # its guest's clock is the host's of now
            assert abs(float(later.commands.run("date +%s").stdout) - (time.time() - 86400)) < 10
        stays.kill()
