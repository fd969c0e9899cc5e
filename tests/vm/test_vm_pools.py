"""Pools on real machines: nobody gets another's, what dies is replaced, what was ready differs from all others.

One daemon with one pool for the whole file.
"""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest
from vm_world import Daemon, home_like, run_daemon

from casemate.errors import NotFound
from casemate.sdk import Client, Sandbox

pytestmark = [pytest.mark.vm, pytest.mark.slow]
FOLDERS = ("/tmp", "/home/user")
READY, CLAIMS, CLIENTS, DRAWERS = 10, 200, 8, 8
CLAIMED_MEANWHILE = 4
FIRST_DRAWS = """
import os, uuid, random, json, secrets, time
import numpy
print(json.dumps({
    "urandom": os.urandom(16).hex(),
    "getrandom": os.getrandom(16).hex(),
    "uuid4": str(uuid.uuid4()),
    "secrets": secrets.token_hex(16),
    "random": random.random(),
    "numpy": float(numpy.random.random()),
    "numpy.default_rng": float(numpy.random.default_rng().random()),
    "boot_id": open("/proc/sys/kernel/random/boot_id").read(),
    "machine_id": open("/etc/machine-id").read(),
    "hostname": os.uname().nodename,
}))
"""


@pytest.fixture(scope="module")
def pooled(built: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    home = home_like(built, tmp_path_factory.mktemp("pools"))
    with run_daemon(home, CASEMATE_POOL_REFILLS_AT_ONCE="2") as daemon:
        with Client(daemon.url) as client:
            client.pools.set("python", min_ready=READY)
            full(client)
        yield daemon


@pytest.fixture(autouse=True)
def nothing_but_the_pool_stays(pooled: Daemon) -> Iterator[None]:
    """What ``no_trace`` is elsewhere: here members come and go."""
    yield
    with Client(pooled.url) as client:
        full(client)
        until(lambda: client.health()["sandboxes"] == 0, "no sandbox lives", 10)
    until(lambda: len(list((pooled.home / "sandboxes").iterdir())) == READY, "the members' folders only", 10)
    assert len(members(pooled)) == READY


def until(condition: Callable[[], object], what: str, within_s: float) -> None:
    deadline = time.monotonic() + within_s
    while not condition():
        assert time.monotonic() < deadline, f"not within {within_s:.1f} s: {what}"
        time.sleep(0.05)


def full(client: Client, within_s: float = 150) -> None:  # others may have the processors
    until(lambda: client.pools.get("python")["ready"] == READY, f"{READY} are ready", within_s)


def members(daemon: Daemon) -> dict[str, int]:
    """The VMMs of what is ready, which no list of the API shows: sandbox id → pid."""
    with Client(daemon.url) as client:
        listed = {s["id"] for s in client.pages("/v1/sandboxes", "sandboxes")}
    found = {}
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            words = (entry / "cmdline").read_bytes().split(b"\0")
            is_vmm = b"qemu" in words[0] and (entry / "stat").read_text().rsplit(")", 1)[1].split()[0] == "T"
        except OSError:
            continue
        names = [word for word in words if re.search(rb"guest=[0-9a-z]{26}", word)]
        if is_vmm and names:
            found[re.search(rb"guest=([0-9a-z]{26})", names[0])[1].decode()] = int(entry.name)  # type: ignore[index]
    here = {path.name for path in (daemon.home / "sandboxes").iterdir()}
    return {name: pid for name, pid in found.items() if name in here - listed}


def claim_and_look(daemon: Daemon, mark: str) -> tuple[str, list[str]]:
    """A sandbox's id, and whose marks it had before we left ours."""
    with Client(daemon.url) as client, Sandbox.create(client=client, name=f"c-{mark}", create_timeout_s=120) as sandbox:
        before = [entry.name for folder in FOLDERS for entry in sandbox.files.list(folder)]
        for folder in FOLDERS:
            sandbox.files.write(f"{folder}/mark-{mark}", mark.encode())
        after = {entry.name for folder in FOLDERS for entry in sandbox.files.list(folder)}
        assert f"mark-{mark}" in after  # or looking for others' would prove nothing
        return sandbox.id, [name for name in before if name.startswith("mark-")]


@pytest.mark.timeout(400)  # a busy machine of two cores
def test_200_claims_from_8_clients_and_no_two_get_the_same(pooled: Daemon) -> None:
    with Client(pooled.url) as client:
        full(client)
        before = client.pools.get("python")
        with ThreadPoolExecutor(CLIENTS) as threads:
            got = list(threads.map(lambda n: claim_and_look(pooled, f"{n:03d}"), range(CLAIMS)))
        after = client.pools.get("python")
        assert len({sandbox for sandbox, _ in got}) == CLAIMS
        assert [seen for _, seen in got if seen] == []
        hits = after["hits"] - before["hits"]
        missed = sum(after["misses"].values()) - sum(before["misses"].values())
        assert hits + missed == CLAIMS
        assert set(after["misses"]) <= {"empty"}
        assert hits >= READY
        until(lambda: client.pools.get("python")["claimed"] == 0, "none is claimed any more", 10)
        full(client)


def test_killed_members_are_replaced_and_nobody_gets_a_dead_one(pooled: Daemon) -> None:
    with Client(pooled.url) as client:
        full(client)
        refilled = client.pools.get("python")["refill"]["p95_ms"] / 1000  # with its warming: three times a restore
        died = client.pools.get("python")["died"]
        killed = dict(list(members(pooled).items())[: READY // 2])
        assert len(killed) == READY // 2
        claimed: list[str] = []

        def claim() -> None:
            for _ in range(CLAIMED_MEANWHILE):
                with Client(pooled.url) as own, Sandbox.create(client=own) as sandbox:
                    sandbox.commands.run(["/bin/true"], check=True)
                    claimed.append(sandbox.id)

        with ThreadPoolExecutor(1) as threads:
            for pid in killed.values():
                os.kill(pid, signal.SIGKILL)
            claiming, began = threads.submit(claim), time.monotonic()
            until(lambda: client.pools.get("python")["ready"] < READY, "their end is noticed", 5)
            claiming.result(30)
            full(client, within_s=max(3 * refilled * READY, 5))
            took_s = time.monotonic() - began
        assert not set(claimed) & set(killed)
        assert client.pools.get("python")["died"] - died == len(killed)
        print(f"back at {READY} after {took_s:.2f} s; a member takes {refilled * 1000:.0f} ms (p95)")


def test_eight_claimed_at_once_differ_in_every_source_of_randomness(pooled: Daemon) -> None:
    with Client(pooled.url) as client:
        full(client)
        hits = client.pools.get("python")["hits"]
        ready = threading.Barrier(DRAWERS)

        def draw(_: int) -> dict[str, object]:
            ready.wait(10)
            with Client(pooled.url) as own, Sandbox.create(client=own) as sandbox:
                execution = sandbox.run_code(FIRST_DRAWS)
                assert execution.error is None, execution.error
                found: dict[str, object] = json.loads(execution.logs.stdout)
                return found

        with ThreadPoolExecutor(DRAWERS) as threads:
            drawn = list(threads.map(draw, range(DRAWERS)))
        assert client.pools.get("python")["hits"] - hits == DRAWERS  # all of them were ready when they were asked for
    for source in drawn[0]:
        values = [str(one[source]) for one in drawn]
        assert len(set(values)) == DRAWERS, f"{source} is shared: {values}"


def test_a_claimed_one_is_as_it_was_asked_for(pooled: Daemon) -> None:
    with Client(pooled.url) as client:
        full(client)
        made = Sandbox.create(client=client, name="as-asked", env={"WHOSE": "mine"}, cwd="/tmp", labels={"a": "b"})
        with made as sandbox:
            assert client.pools.get("python")["claimed"] == 1
            assert (sandbox.info.name, dict(sandbox.info.labels)) == ("as-asked", {"a": "b"})
            assert sandbox.commands.list() == []
            begun = time.time()
            said = sandbox.commands.run(["sh", "-c", "echo $WHOSE; pwd; date +%s; ls -a /tmp; id -un"]).stdout.split(
                "\n"
            )
            assert said[:2] == ["mine", "/tmp"]
            assert begun - 1.5 < int(said[2]) < time.time() + 0.5
            assert sandbox.info.timings.restore_ms < 1000
            sandbox.suspend()
            assert sandbox.commands.run("echo again").stdout == "again\n"


def test_ready_ones_rest_and_nobody_finds_them(pooled: Daemon) -> None:
    with Client(pooled.url) as client:
        full(client)
        resting = members(pooled)
        assert len(resting) == READY
        busy = sum(cpu_ticks(pid) for pid in resting.values())
        time.sleep(1)
        assert sum(cpu_ticks(pid) for pid in resting.values()) == busy
        for name in list(resting)[:2]:
            with pytest.raises(NotFound):
                client.call("GET", f"/v1/sandboxes/{name}")
        argv = [sys.executable, "-m", "casemate.cli", "pool", "ls"]
        env = os.environ | {"CASEMATE_URL": pooled.url}
        said = subprocess.run(argv, env=env, capture_output=True, text=True, check=True, timeout=30).stdout
        assert f"{READY}/{READY}" in said
        transport = httpx.HTTPTransport(uds=str(pooled.home / "run/daemon.sock"))
        with httpx.Client(transport=transport, base_url="http://casemate") as raw:
            lines = raw.get("/metrics").text.splitlines()
        assert any(line.startswith("casemate_pool_ready{") and line.endswith(f" {READY}.0") for line in lines)


def cpu_ticks(pid: int) -> int:
    fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return int(fields[11]) + int(fields[12])
