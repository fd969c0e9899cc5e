"""Provisioned concurrency: a claim, a hundred at once with and without a pool, and two hundred that wait."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from casemate.bench.acts import Acts, anonymous_mb, timed
from casemate.bench.rows import Samples, percentile, row
from casemate.errors import BootTimeout, CasemateError, StateConflict
from casemate.sdk import Client, Sandbox

IMAGE = "python"
BURST, DENSITY = 100, 200
KILLED_AT_ONCE = 16
WATCHED_S = 5.0
FILL_S = 20.0  # for each member; a host that is busy refills late, by design


def refuse_beside(kept: Iterable[Mapping[str, Any]]) -> None:
    """With a pool of its image creates would be claims, and ours would take its place. Raises StateConflict."""
    for pool in kept:
        if re.split("[@:]", pool["image"])[0] in (IMAGE, "sha256"):
            raise StateConflict(
                f"pool {pool['id']} keeps {pool['image']} ready: what is measured here would be claims from it",
                hint=f"casemate pool rm {pool['id']}, or measure with a CASEMATE_HOME of its own",
            )


@contextmanager
def open_pool(client: Client, ready: int) -> Iterator[None]:
    """A pool of *ready* for the block. Raises BootTimeout when it does not fill."""
    client.pools.set(IMAGE, min_ready=ready)
    try:
        wait_full(client, ready)
        yield
    finally:
        client.pools.remove(IMAGE)


def wait_full(client: Client, ready: int) -> None:
    deadline = time.monotonic() + 10 + FILL_S * ready
    while (pool := client.pools.get(IMAGE))["ready"] < ready:
        if time.monotonic() > deadline:
            raise BootTimeout(f"{pool['ready']} of {ready} members are ready; {pool['failure'] or 'it is slow'}")
        time.sleep(0.05)


def claim_to_first_exec(client: Client, warm: Acts, n: int, ready: int) -> dict[str, Any]:
    """From the create to the exit status of /bin/true in it, beside the same program in a sandbox that is warm."""
    name, product, beside = "pool_claim_to_first_exec", Samples(), list[float]()
    with open_pool(client, ready):
        for _ in range(n):
            try:
                wait_full(client, ready)
                beside.append(warm.exec_roundtrip())
                product.ms.append(_create_and_run(client))
            except CasemateError as error:
                product.errors.append(f"{error.code}: {error.message}")
        hits = client.pools.get(IMAGE)["hits"]
    measured = row(name, product, Samples())
    p50, p50_beside = measured["p50_ms"], percentile(beside, 0.5)
    over = None if p50 is None or p50_beside is None else round(p50 - p50_beside, 2)
    return measured | {"hits": hits, "over_exec_roundtrip_ms": over}


def _create_and_run(client: Client) -> float:
    made: list[Sandbox] = []

    def create_and_run() -> None:
        made.append(Sandbox.create(client=client))
        made[0].commands.run(["/bin/true"], check=True)

    try:
        return timed(create_and_run)
    finally:
        for sandbox in made:
            sandbox.kill()


@dataclass
class Burst:
    """What each of those asked for at once waited for, in milliseconds."""

    admission: list[float] = field(default_factory=list)
    create: list[float] = field(default_factory=list)
    exec: list[float] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)


def burst(client: Client, name: str, count: int = BURST) -> dict[str, Any]:
    """*count* asked for at once and kept until all are there; the figure is until the last has run its program."""
    found, held = Burst(), list[Sandbox]()

    def one(_: int) -> None:
        try:
            began = time.perf_counter()
            sandbox = Sandbox.create(client=client, create_timeout_s=300)
            held.append(sandbox)
            found.create.append((time.perf_counter() - began) * 1000)
            if sandbox.info.timings.admitted_ms is not None:
                found.admission.append(sandbox.info.timings.admitted_ms)
            found.exec.append(timed(lambda: sandbox.commands.run(["/bin/true"], check=True)))
        except CasemateError as error:
            found.errors.append(f"{error.code}: {error.message}")

    try:
        with ThreadPoolExecutor(count) as threads:
            whole_ms = timed(lambda: list(threads.map(one, range(count))))
    finally:
        with ThreadPoolExecutor(KILLED_AT_ONCE) as threads:
            list(threads.map(lambda sandbox: sandbox.kill(), held))
    told = {
        f"{what}_{key}_ms": _rounded(percentile(values, share))
        for what, values in (("admission", found.admission), ("create", found.create), ("exec", found.exec))
        for key, share in (("p50", 0.5), ("p95", 0.95))
    }
    return row(name, Samples([whole_ms], found.errors), Samples()) | {"asked": count, "ran": len(found.exec), **told}


def bursts(client: Client) -> list[dict[str, Any]]:
    rows = [burst(client, "burst_100")]
    with open_pool(client, BURST):
        hits = client.pools.get(IMAGE)["hits"]
        made = burst(client, "burst_100_pool")
        rows.append(made | {"hits": client.pools.get(IMAGE)["hits"] - hits})
    return rows


def density(client: Client, count: int = DENSITY) -> dict[str, Any]:
    """Ready clones at rest: the memory that is each one's own, and what all of them cost a processor."""
    with open_pool(client, count):
        pids = list(_resting())
        try:
            own = [anonymous_mb(pid) for pid in pids]
        except OSError as error:
            return row("density", Samples(), Samples(), skipped=f"a VMM's memory is not ours to read: {error}")
        before, began = _cpu_s(pids), time.monotonic()
        time.sleep(WATCHED_S)
        cores = (_cpu_s(pids) - before) / (time.monotonic() - began)
    memory = {f"anonymous_mb_{key}": _rounded(percentile(own, share)) for key, share in (("p50", 0.5), ("p95", 0.95))}
    return row("density", Samples(), Samples()) | {"ready": len(pids), **memory, "cores_in_all": round(cores, 3)}


def _resting() -> Iterator[int]:
    """The VMMs of this host that are stopped, as the kernel has them."""
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            words = (entry / "cmdline").read_bytes().split(b"\0")
            state = (entry / "stat").read_text().rsplit(")", 1)[1].split()[0]
        except OSError:  # it has just ended
            continue
        if state == "T" and any(b"guest=" in word for word in words):
            yield int(entry.name)


def _cpu_s(pids: list[int]) -> float:
    ticks = 0
    for pid in pids:
        fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
        ticks += int(fields[11]) + int(fields[12])
    return ticks / os.sysconf("SC_CLK_TCK")


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 2)
