"""The run: which rows, in which order, how often, and how they are told."""

from __future__ import annotations

import json
import os
import platform
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from casemate.bench import acts, pools
from casemate.bench.cells import cell_rows
from casemate.bench.floor import Floor, open_floor
from casemate.bench.forks import fork_rows
from casemate.bench.rests import rest_rows
from casemate.bench.rows import Crowds, Samples, percentile, rates, row
from casemate.bench.vmm import firecracker_rows
from casemate.errors import CasemateError
from casemate.sdk import Client

COLUMNS = ("name", "n", "failures", "p50_ms", "p95_ms", "p99_ms", "floor_p50_ms", "ratio")
CROWDS = Crowds()
SLOW, SLOWEST = 5, 20  # such a share of n for acts that take long


def run_bench(n: int, json_path: Path | None = None, heavy: bool = False, crowds: Crowds = CROWDS) -> dict[str, Any]:
    """Measure, print the table, write the report to *json_path*. *heavy*: also hundreds of sandboxes at once.

    Raises StateConflict beside a pool of somebody's, and what creating a sandbox raises.
    """
    with Client() as client:
        pools.refuse_beside(client.pools.list())
        acts.create_to_first_exec(client)  # builds the snapshot where there is none, and starts the daemon
        image = client.call("GET", "/v1/images/python")
        health = client.health()
        with open_floor(image.get("clone")) as floor:
            if not floor.is_there:
                print("no floors: bench/floor.py comes with the checkout only", file=sys.stderr)
            rows = _rows(client, image, floor, n, crowds)
            if heavy:
                _tell("burst_100, density")
                rows += [*pools.bursts(client), pools.density(client)]
    report = {"machine": _machine(image), "isolation": health["isolation"], "rows": rows}
    if json_path is not None:
        json_path.write_text(json.dumps(report, indent=1) + "\n")
    _print(report)
    return report


def run_vmm_bench(n: int, json_path: Path | None = None) -> dict[str, Any]:
    """The rows of Firecracker alone, told and written as those of ``run_bench``. Raises HostError."""
    files, rows = firecracker_rows(n, _tell)
    vmm = {"vmm": f"Firecracker v{files['version']}", "vmm_machine": f"1 vCPU, {files['memory_mib']} MiB, no drives"}
    report = {"machine": _host() | vmm, "isolation": "not looked at", "rows": rows}
    if json_path is not None:
        json_path.write_text(json.dumps(report, indent=1) + "\n")
    _print(report)
    return report


def _rows(client: Client, image: dict[str, Any], floor: Floor, n: int, crowds: Crowds) -> list[dict[str, Any]]:
    few, fewest = max(1, n // SLOW), max(1, n // SLOWEST)
    # First, because pages that a live clone has mapped cannot be dropped from the cache.
    rows = [_first_after_boot(client, image["clone"], floor, fewest)]
    rows += [
        _interleaved("create_to_first_answer", lambda: acts.create_to_first_answer(client), floor, n),
        _interleaved("create_to_first_exec", lambda: acts.create_to_first_exec(client), floor, n),
    ]
    with acts.open_acts(client) as warm:
        rows.append(_interleaved("exec_roundtrip", warm.exec_roundtrip, floor, n))
        for name, act in (("put_16mib", warm.put_16mib), ("get_16mib", warm.get_16mib)):
            measured = _interleaved(name, act, floor, few)
            rows.append(measured | rates(acts.FILE_BYTES, measured))
        _tell("pool_claim_to_first_exec")
        rows.append(pools.claim_to_first_exec(client, warm, few, crowds.ready))
    created = next(found for found in rows if found["name"] == "create_to_first_exec")
    rows.append(created | {"name": "restore_to_first_exec", "samples_of": "create_to_first_exec"})  # no pool, no claim
    rows += cell_rows(client, floor, n, few, crowds.ready, _tell)
    rows += rest_rows(client, floor, few, _tell)
    rows += fork_rows(client, fewest, crowds.copies, _tell)
    at_once = crowds.burst
    rows.append(_interleaved(f"burst_{at_once}", lambda: acts.burst(client, at_once), floor, fewest))
    return [*rows, _private_memory(client, fewest)]


def _interleaved(
    name: str, act: acts.Act, floor: Floor, n: int, prepare: Callable[[], object] = lambda: None
) -> dict[str, Any]:
    product, beneath = Samples(), Samples()
    for number in range(n):
        _tell(f"{name} {number + 1}/{n}")
        prepare()
        try:
            product.ms.append(act())
        except CasemateError as error:
            product.errors.append(f"{error.code}: {error.message}")
        prepare()
        floor.measure(name, beneath)
    return row(name, product, beneath)


def _first_after_boot(client: Client, clone: dict[str, Any], floor: Floor, n: int) -> dict[str, Any]:
    try:
        acts.forget_template(clone)
    except OSError as error:
        return row("first_after_boot", Samples(), Samples(), skipped=f"the template is not ours to read: {error}")
    return _interleaved(
        "first_after_boot",
        lambda: acts.create_to_first_answer(client),
        floor,
        n,
        prepare=lambda: acts.forget_template(clone),
    )


def _private_memory(client: Client, n: int) -> dict[str, Any]:
    name, product, found = "private_memory_idle", Samples(), []
    for number in range(n):
        _tell(f"{name} {number + 1}/{n}")
        try:
            found.append(acts.private_memory_mb(client))
        except OSError as error:
            return row(name, product, Samples(), skipped=f"a VMM's memory is not ours to read: {error}")
        except CasemateError as error:
            product.errors.append(f"{error.code}: {error.message}")
    told = percentile(found, 0.5)
    return row(name, product, Samples()) | {"n": len(found), "anonymous_mb_p50": round(told, 1) if told else None}


def _machine(image: dict[str, Any]) -> dict[str, Any]:
    made = image["platform"]
    return _host() | {"cpu": made["cpu"], "vmm": made["version"], "vmm_machine": made["machine"]}


def _host() -> dict[str, Any]:
    return {
        "cpu": platform.processor() or platform.machine(),
        "cores": os.cpu_count(),
        "memory_mib": os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") >> 20,
        "kernel": platform.release(),
    }


def _tell(text: str) -> None:
    """Progress, on a terminal only."""
    if sys.stderr.isatty():
        print(f"\r\033[K{text}", end="", file=sys.stderr, flush=True)


def _print(report: dict[str, Any]) -> None:
    _tell("")
    machine = report["machine"]
    print(f"{machine['cpu']}, {machine['cores']} cores; {machine['vmm']}; isolation {report['isolation']}\n")
    lines = [COLUMNS, *([_cell(found[key]) for key in COLUMNS] for found in report["rows"])]
    widths = [max(len(line[i]) for line in lines) for i in range(len(COLUMNS))]
    for line, found in zip(lines, [{}, *report["rows"]], strict=True):
        more = "  ".join(f"{key}={value}" for key, value in found.items() if key not in COLUMNS)
        cells = [line[0].ljust(widths[0]), *(c.rjust(w) for c, w in zip(line[1:], widths[1:], strict=True))]
        print("  ".join([*cells, more]).rstrip())


def _cell(value: object) -> str:
    return "-" if value is None else str(value)
