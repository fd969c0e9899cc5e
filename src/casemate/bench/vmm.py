"""What a restore costs in the VMM alone, with a guest that only counts: ``casemate bench --vmm firecracker``.

Ours and the floor are programs beside us, which are given the same files (``casemate.vmm.firecracker.measure`` and
``bench/firecracker.py``). The floor makes the same calls by hand, once with nothing around the VMM and once in its
jailer: what the jailer's share is, ours and theirs, can be told apart.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

from casemate.bench.floor import FIRECRACKER, Floor, open_program
from casemate.bench.rows import Samples, percentile, row
from casemate.errors import HostError

OURS = ("-m", "casemate.vmm.firecracker.measure")
MEMORY_SAMPLES = 5


def firecracker_rows(n: int, tell: Callable[[str], None]) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """What was measured with, and the rows. Raises HostError where it cannot be run."""
    with open_program(*OURS) as ours:
        files = ours.hear()
        if "error" in files:
            raise HostError(f"Firecracker cannot be measured here: {files['error']}", hint="casemate doctor says why")
        with open_program(str(FIRECRACKER), json.dumps(files)) as floor:
            rows = _restores(ours, floor, n, tell)
        memory = [ours.ask("memory") for _ in range(MEMORY_SAMPLES)]
    found = [float(answer["mib"]) for answer in memory if "mib" in answer]
    failed = Samples(errors=[str(answer.get("error")) for answer in memory if "mib" not in answer])
    told = percentile(found, 0.5)
    rows.append(
        row("vmm_memory", failed, Samples()) | {"n": len(found), "pss_mib_p50": round(told, 1) if told else None}
    )
    return files, rows


def _restores(ours: Floor, floor: Floor, n: int, tell: Callable[[str], None]) -> list[dict[str, Any]]:
    """From the call until the guest says something, taken in turns; and its two parts, by when the VMM has started."""
    told: dict[str, tuple[Samples, Samples]] = {}
    for number in range(n):
        tell(f"restore {number + 1}/{n}")
        for who, program, act in (("ours", ours, "restore"), ("jailed", floor, "jailed"), ("bare", floor, "bare")):
            start, calls = told.setdefault(who, (Samples(), Samples()))
            answer = program.ask(act)
            if "ms" in answer:
                start.ms.append(float(answer["started_ms"]))
                calls.ms.append(float(answer["ms"]) - float(answer["started_ms"]))
            else:
                calls.errors.append(f"{who}: {answer.get('error')}")
    whole = {who: _sum(*parts) for who, parts in told.items()}
    return [
        row("restore", whole["ours"], whole["jailed"]) | {"floor": "jailed"},
        row("restore", whole["ours"], whole["bare"]) | {"floor": "bare"},
        row("start_in_jail", told["ours"][0], told["jailed"][0]) | {"floor": "jailed"},
        row("calls", told["ours"][1], told["jailed"][1]) | {"floor": "jailed"},
    ]


def _sum(start: Samples, calls: Samples) -> Samples:
    return Samples([one + other for one, other in zip(start.ms, calls.ms, strict=True)], calls.errors)
