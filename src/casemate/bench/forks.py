"""Copies of a sandbox that has worked: several at once, each one's memory, and its moment kept as an image."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from typing import Any

from casemate.bench.acts import anonymous_mb, timed
from casemate.bench.floor import Floor, open_floor
from casemate.bench.rows import Samples, percentile, row
from casemate.errors import CasemateError, GuestError
from casemate.sdk import Client, Sandbox

WORK = """
import numpy as np, pandas as pd
frame = pd.DataFrame({"group": np.arange(200_000) % 97, "value": np.random.default_rng(1).normal(size=200_000)})
summary = frame.groupby("group").value.describe()
len(summary)
"""
Tell = Callable[[str], None]


def fork_rows(client: Client, n: int, copies: int, tell: Tell) -> list[dict[str, Any]]:
    """*n* forks into *copies* and *n* snapshots. By hand as many are restored from the files of one of them."""
    name = f"fork_{copies}"
    image = f"bench-{secrets.token_hex(4)}"
    with _versions_of(client, image), _worked(client) as parent:
        tell(f"{name}: its parent works")
        kept = parent.snapshot(image)
        whole = client.call("GET", f"/v1/images/{image}@{kept['version']}")
        with open_floor(whole.get("clone")) as floor:
            forks, own_mb = _forks(parent, copies, floor, n, lambda done: tell(f"{name} {done}"))
            snapshots, takes = _snapshots(parent, image, floor, n, tell)
            taken = [client.snapshots.get(f"{image}@{take['version']}")["taken"] for take in takes]
    forked = row(name, *forks) | {"anonymous_mb_p50": _rounded(percentile(own_mb, 0.5))}
    if not own_mb:
        forked["anonymous_skipped"] = "a VMM's memory is not ours to read"
    stood = {what: [facts[what] for facts in taken] for what in ("pause_ms", "frozen_ms")}
    stood["dirty_mb"] = [facts["dirty_bytes"] / 1e6 for facts in taken]
    told = {f"{what}_p50": _rounded(percentile(values, 0.5)) for what, values in stood.items()}
    return [forked, row("snapshot", *snapshots) | told]


def _forks(
    parent: Sandbox, count: int, floor: Floor, n: int, tell: Tell
) -> tuple[tuple[Samples, Samples], list[float]]:
    """Until the last of *count* has run a program; and the anonymous memory of each, then."""
    product, beneath, own_mb = Samples(), Samples(), list[float]()
    for number in range(n):
        tell(f"{number + 1}/{n}")
        copies: list[Sandbox] = []
        try:
            product.ms.append(timed(partial(_fork_and_run, parent, count, copies)))
            own_mb += _own_memory(copies)
        except CasemateError as error:
            product.errors.append(f"{error.code}: {error.message}")
        finally:
            for copy in copies:
                copy.kill()
        floor.measure(f"fork_{count}", beneath)
    return (product, beneath), own_mb


def _fork_and_run(parent: Sandbox, count: int, copies: list[Sandbox]) -> None:
    copies += parent.fork(count)
    with ThreadPoolExecutor(count) as threads:
        list(threads.map(lambda copy: copy.commands.run(["/bin/true"], check=True), copies))


def _own_memory(copies: list[Sandbox]) -> Iterator[float]:
    """Nothing where this user may not read it."""
    for copy in copies:
        try:
            yield anonymous_mb(copy.info.pid)
        except OSError:
            return


def _snapshots(
    parent: Sandbox, image: str, floor: Floor, n: int, tell: Tell
) -> tuple[tuple[Samples, Samples], list[dict[str, Any]]]:
    """By hand it is a copy of the same memory and disk, to the disk."""
    product, beneath, takes = Samples(), Samples(), list[dict[str, Any]]()
    for number in range(n):
        tell(f"snapshot {number + 1}/{n}")
        try:
            product.ms.append(timed(lambda: takes.append(parent.snapshot(image))))
        except CasemateError as error:
            product.errors.append(f"{error.code}: {error.message}")
        floor.measure("snapshot", beneath)
    return (product, beneath), takes


@contextmanager
def _worked(client: Client) -> Iterator[Sandbox]:
    with Sandbox.create(client=client, idle_timeout_s=None, park_after_s=None) as sandbox:
        execution = sandbox.run_code(WORK)
        if execution.text != "97":
            raise GuestError(f"the work before a fork gave {execution.text!r}, {execution.error}")
        yield sandbox


@contextmanager
def _versions_of(client: Client, image: str) -> Iterator[None]:
    """What becomes of that image in the block is gone after it."""
    try:
        yield
    finally:
        for version in client.snapshots.list():
            if version["name"] == image:
                client.snapshots.remove(f"{image}@{version['version']}")


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 2)
